//! Tensors as PyTorch pickles them: a call of a rebuild function with a storage, an offset, a shape and
//! strides, all counted in elements.

use lastgood_format::Dtype;

use super::flaw::Flaw;
use super::pickle::{Id, Node, Pickle};

/// More dimensions than that no tensor has.
const DIMS_MAX: usize = 64;

/// The dtype that torch calls `name`, if lastgood has it. `uint8` is `U8`, `float8_e4m3fn` is `F8_E4M3`.
pub(crate) fn dtype_of_name(name: &str) -> Option<Dtype> {
    Some(match name {
        "bool" => Dtype::Bool,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "uint16" => Dtype::U16,
        "int16" | "short" => Dtype::I16,
        "uint32" => Dtype::U32,
        "int32" | "int" => Dtype::I32,
        "uint64" => Dtype::U64,
        "int64" | "long" => Dtype::I64,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float32" | "float" => Dtype::F32,
        "float64" | "double" => Dtype::F64,
        "float8_e5m2" => Dtype::F8E5M2,
        "float8_e4m3fn" => Dtype::F8E4M3,
        "float8_e8m0fnu" => Dtype::F8E8M0,
        "float8_e5m2fnuz" => Dtype::F8E5M2Fnuz,
        "float8_e4m3fnuz" => Dtype::F8E4M3Fnuz,
        "complex64" | "cfloat" => Dtype::C64,
        _ => return None,
    })
}

/// The bytes of an element that torch calls `name`, also where lastgood has no dtype for it.
pub(crate) fn element_bytes(name: &str) -> Option<u64> {
    match dtype_of_name(name) {
        Some(dtype) => dtype.bytes_of(1),
        None if name == "complex128" => Some(16),
        None if matches!(name, "quint8" | "qint8" | "bits8" | "float4_e2m1fn_x2") => Some(1),
        None if name == "bits16" => Some(2),
        None if matches!(name, "qint32" | "complex32") => Some(4),
        None => None,
    }
}

/// The dtype's name for a class of typed storages.
fn dtype_of_storage(class: &str) -> Option<&'static str> {
    Some(match class {
        "BoolStorage" => "bool",
        "ByteStorage" => "uint8",
        "CharStorage" => "int8",
        "ShortStorage" => "int16",
        "IntStorage" => "int32",
        "LongStorage" => "int64",
        "HalfStorage" => "float16",
        "BFloat16Storage" => "bfloat16",
        "FloatStorage" => "float32",
        "DoubleStorage" => "float64",
        "ComplexFloatStorage" => "complex64",
        "ComplexDoubleStorage" => "complex128",
        "QUInt8Storage" => "quint8",
        "QInt8Storage" => "qint8",
        "QInt32Storage" => "qint32",
        _ => return None,
    })
}

/// The scalar types of numpy that arrays and numbers are pickled with.
pub(crate) fn is_numpy_scalar(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "bool_",
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        "str_",
        "bytes_",
        "datetime64",
    ];
    NAMES.contains(&name)
}

/// What a tensor's bytes are kept in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Storage {
    /// Its name beside the stream.
    pub(crate) key: String,
    /// The name of its dtype; `None` if it is untyped and counted in bytes.
    pub(crate) dtype: Option<&'static str>,
    /// Elements, or bytes if it is untyped.
    pub(crate) count: u64,
}

impl Storage {
    /// The size in bytes.
    pub(crate) fn bytes(&self) -> Result<u64, Flaw> {
        let each = match self.dtype {
            Some(name) => element_bytes(name),
            None => Some(1),
        };
        each.and_then(|each| each.checked_mul(self.count))
            .ok_or_else(|| Flaw::content(format!("storage {:?} has no size", self.key)))
    }
}

/// A tensor: where its elements are in its storage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct View {
    pub(crate) storage: Storage,
    /// The name that torch gives its dtype.
    pub(crate) dtype: String,
    /// In elements.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    /// In elements.
    pub(crate) strides: Vec<u64>,
    /// It is marked conjugated, negated or the like: its bytes are not its values.
    pub(crate) lazy: bool,
}

impl View {
    /// The bytes of the storage from its first element to behind its last one.
    pub(crate) fn extent(&self) -> Option<(u64, u64)> {
        let each = element_bytes(&self.dtype)?;
        let begin = self.offset.checked_mul(each)?;
        if self.shape.contains(&0) {
            return Some((begin, begin));
        }
        let mut last = self.offset;
        for (size, stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add(size.checked_sub(1)?.checked_mul(*stride)?)?;
        }
        Some((begin, last.checked_add(1)?.checked_mul(each)?))
    }

    /// The number of elements.
    pub(crate) fn elements(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size))
    }

    /// True if its elements stand one behind the other in row-major order.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = Some(1u64);
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 && Some(*stride) != expected {
                return self.shape.contains(&0);
            }
            expected = expected.and_then(|expected| expected.checked_mul(*size));
        }
        true
    }

    /// Checks that every element is in the storage.
    pub(crate) fn check(&self) -> Result<(), Flaw> {
        let bytes = self.storage.bytes()?;
        if element_bytes(&self.dtype).is_none() {
            return Err(Flaw::limit(format!(
                "a tensor of {}, whose size is not known",
                self.dtype
            )));
        }
        match self.extent() {
            Some((_, end)) if end <= bytes => Ok(()),
            _ => Err(Flaw::content(format!(
                "a tensor of {} {:?} from element {} does not fit storage {:?} of {bytes} bytes",
                self.dtype, self.shape, self.offset, self.storage.key
            ))),
        }
    }
}

/// The storage that a persistent id names: `("storage", class, key, place, count)`.
pub(crate) fn storage(pickle: &Pickle, id: Id) -> Result<Storage, Flaw> {
    let odd = || Flaw::content("it refers to something beside it that is no storage");
    let Node::Persistent(of) = pickle.node(id) else { return Err(odd()) };
    let parts = pickle.items(*of).ok_or_else(odd)?;
    if parts.len() < 5 || pickle.text(parts[0]) != Some("storage") {
        return Err(odd());
    }
    let class = pickle.name(parts[1]).ok_or_else(odd)?;
    let dtype = dtype_of_storage(&class.name);
    if dtype.is_none() && class.name != "UntypedStorage" {
        return Err(Flaw::limit(format!("a storage of class {}", class.full())));
    }
    let key = pickle.text(parts[2]).ok_or_else(odd)?.to_owned();
    let count = pickle.size(parts[4]).ok_or_else(odd)?;
    Ok(Storage { key, dtype, count })
}

/// The tensor that a node is, if it is one: through parameters, which are tensors with two more facts.
pub(crate) fn view(pickle: &Pickle, id: Id) -> Option<Result<View, Flaw>> {
    let name = pickle.called(id)?;
    if name.module != "torch._utils" {
        return None;
    }
    let Node::Call(call) = pickle.node(id) else { return None };
    let args = pickle.items(call.args)?;
    match name.name.as_str() {
        "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" => {
            Some(rebuilt(pickle, args, name.name.ends_with("v3")))
        }
        // A hostile stream may wrap a parameter in itself.
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => {
            let inner = *args.first()?;
            let direct =
                pickle.called(inner).is_some_and(|n| n.name.starts_with("_rebuild_tensor"));
            if direct { view(pickle, inner) } else { None }
        }
        _ => None,
    }
}

/// `(storage, offset, shape, strides, requires_grad, hooks, dtype | metadata, metadata)`.
fn rebuilt(pickle: &Pickle, args: &[Id], has_dtype: bool) -> Result<View, Flaw> {
    let odd = || Flaw::content("a tensor is described in a way that torch does not write");
    let [of, offset, shape, strides, ..] = args else { return Err(odd()) };
    let storage = storage(pickle, *of)?;
    let shape = pickle.sizes(*shape).ok_or_else(odd)?;
    let strides = pickle.sizes(*strides).ok_or_else(odd)?;
    if shape.len() != strides.len() || shape.len() > DIMS_MAX {
        return Err(odd());
    }
    let offset = pickle.size(*offset).ok_or_else(odd)?;
    let dtype = match has_dtype {
        true => args.get(6).and_then(|id| pickle.name(*id)).ok_or_else(odd)?.name.clone(),
        false => storage.dtype.ok_or_else(odd)?.to_owned(),
    };
    let metadata = args.get(if has_dtype { 7 } else { 6 });
    let lazy = metadata
        .is_some_and(|id| !matches!(pickle.node(*id), Node::None) && !is_empty(pickle, *id));
    Ok(View { storage, dtype, offset, shape, strides, lazy })
}

fn is_empty(pickle: &Pickle, id: Id) -> bool {
    pickle.pairs(id).is_some_and(<[_]>::is_empty)
}
