//! What an event says, from plain objects of Python.

use std::collections::BTreeMap;

use lastgood::journal::Value;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// The deepest nesting; what is deeper may hold itself.
const DEPTH_MAX: usize = 15;

/// What an object says: None, a truth value, a number, text, bytes, and lists and dicts of these.
///
/// Anything else is a `TypeError` of Python; a number that is too large, and what is nested too deep, a `ValueError`.
pub(crate) fn from_python(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    value_of(object, 0)
}

fn value_of(object: &Bound<'_, PyAny>, depth: usize) -> PyResult<Value> {
    if depth > DEPTH_MAX {
        return Err(PyValueError::new_err(format!("an event is nested deeper than {DEPTH_MAX}")));
    }
    if object.is_none() {
        Ok(Value::Null)
    } else if let Ok(value) = object.cast::<PyBool>() {
        Ok(value.is_true().into())
    } else if object.is_instance_of::<PyInt>() {
        number(object)
    } else if let Ok(value) = object.cast::<PyFloat>() {
        Ok(value.value().into())
    } else if let Ok(text) = object.cast::<PyString>() {
        Ok(text.to_str()?.into())
    } else if let Ok(bytes) = object.cast::<PyBytes>() {
        Ok(bytes.as_bytes().into())
    } else if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
        let items = object.try_iter()?.map(|item| value_of(&item?, depth + 1));
        Ok(Value::Array(items.collect::<PyResult<_>>()?))
    } else if let Ok(members) = object.cast::<PyDict>() {
        let mut found = BTreeMap::new();
        for (name, item) in members {
            found.insert(name.extract::<String>()?, value_of(&item, depth + 1)?);
        }
        Ok(Value::Map(found))
    } else {
        Err(PyTypeError::new_err(format!(
            "an event holds None, bool, int, float, str, bytes, and lists and dicts of these, not {}",
            object.get_type().name()?
        )))
    }
}

fn number(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(number) = object.extract::<u64>() {
        return Ok(number.into());
    }
    let number: i64 = object
        .extract()
        .map_err(|_| PyValueError::new_err("a number of an event is from -2**63 to 2**64 - 1"))?;
    Ok(number.into())
}

/// The plain object of Python that says the same.
pub(crate) fn to_python(py: Python<'_>, value: &Value) -> PyResult<Py<PyAny>> {
    Ok(match value {
        Value::Null => py.None(),
        Value::Bool(value) => PyBool::new(py, *value).to_owned().into_any().unbind(),
        Value::Uint(value) => value.into_pyobject(py)?.into_any().unbind(),
        Value::Negative(value) => value.into_pyobject(py)?.into_any().unbind(),
        Value::F32(value) => PyFloat::new(py, f64::from(*value)).into_any().unbind(),
        Value::F64(value) => PyFloat::new(py, *value).into_any().unbind(),
        Value::Bytes(bytes) => PyBytes::new(py, bytes).into_any().unbind(),
        Value::Text(text) => PyString::new(py, text).into_any().unbind(),
        Value::Array(values) => {
            let items: PyResult<Vec<_>> = values.iter().map(|item| to_python(py, item)).collect();
            PyList::new(py, items?)?.into_any().unbind()
        }
        Value::Map(members) => {
            let dict = PyDict::new(py);
            for (name, item) in members {
                dict.set_item(name, to_python(py, item)?)?;
            }
            dict.into_any().unbind()
        }
    })
}
