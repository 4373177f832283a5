//! Streams that are usual, and streams that mean harm.

use super::names::{Standing, judge};
use super::*;
use crate::doctor::tests::fixture::{call, dict, int, list, name, stream, text, tuple};

fn read(bytes: &[u8]) -> Pickle {
    Pickle::read(bytes.to_vec(), 0)
}

fn full_names(pickle: &Pickle) -> Vec<String> {
    pickle.names().iter().map(Name::full).collect()
}

#[test]
fn values_of_every_protocol_are_read() {
    // pickletools of {'a': [1, 2.5, None, True], 'b': ('x', b'yz')} in protocols 0, 2 and 4.
    let streams: [&[u8]; 3] = [
        b"(dp0\nVa\np1\n(lp2\nI1\naF2.5\naNaI01\nasVb\np3\n(Vx\np4\nc_codecs\nencode\np5\n(Vyz\np6\nVlatin1\np7\ntp8\nRp9\ntp10\ns.",
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01G@\x04\x00\x00\x00\x00\x00\x00N\x88eX\x01\x00\x00\x00bq\x03X\x01\x00\x00\x00xq\x04c_codecs\nencode\nq\x05X\x02\x00\x00\x00yzq\x06X\x06\x00\x00\x00latin1q\x07\x86q\x08Rq\t\x86q\nu.",
        b"\x80\x04\x95)\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01G@\x04\x00\x00\x00\x00\x00\x00N\x88e\x8c\x01b\x94\x8c\x01x\x94C\x02yz\x94\x86\x94u.",
    ];
    for stream in streams {
        let pickle = read(stream);
        assert_eq!(pickle.flaw(), None);
        assert_eq!(pickle.end(), stream.len());
        let root = pickle.root().unwrap();
        let a = pickle.items(pickle.get(root, "a").unwrap()).unwrap();
        assert_eq!(pickle.int(a[0]), Some(1));
        assert!(matches!(pickle.node(a[1]), Node::Float(2.5)));
        assert!(matches!(pickle.node(a[2]), Node::None));
        assert!(matches!(pickle.node(a[3]), Node::Bool(true)));
        let b = pickle.items(pickle.get(root, "b").unwrap()).unwrap();
        assert_eq!(pickle.text(b[0]), Some("x"));
    }
}

#[test]
fn whatever_would_be_imported_is_named_however_it_is_hidden() {
    let memo = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93.";
    let streams: [&[u8]; 6] = [
        b"cos\nsystem\n(S'x'\ntR.",
        b"(S'x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'x'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.",
        memo,
        // What follows is damaged, but it has run by then.
        b"cos\nsystem\n(S'x'\ntR\xff\xff",
    ];
    for stream in streams {
        assert_eq!(full_names(&read(stream)), ["os.system"], "{stream:?}");
    }
}

#[test]
fn what_only_running_could_tell_is_said() {
    let streams: [&[u8]; 5] = [
        // A name that is put together.
        b"\x80\x04cbuiltins\nstr\n)R\x8c\x06system\x93.",
        // An extension code.
        b"\x80\x02\x82\x01.",
        // A call of what a call gave.
        b"cbuiltins\nlist\n)R)R.",
        // The state of a list.
        b"]}b.",
        // A name without an end.
        &[b"\x80\x04B\x00\x00\x00\x00\x8c\x01x\x93.".as_slice()].concat(),
    ];
    for stream in streams {
        assert!(!read(stream).opaque().is_empty(), "{stream:?}");
    }
}

#[test]
fn members_of_enumerations_are_names() {
    let member = |of: (&str, &str), member: &str| {
        let pickle =
            read(&stream(&call(name("builtins", "getattr"), &[name(of.0, of.1), text(member)])));
        let last = pickle.names().last().unwrap().clone();
        assert!(!pickle.is_used(&pickle.names()[0]));
        judge(&last, &[])
    };
    assert_eq!(
        member(("transformers.trainer_utils", "SaveStrategy"), "STEPS"),
        Standing::Framework
    );
    assert_eq!(member(("transformers.trainer_utils", "SaveStrategy"), "run"), Standing::Unknown);
    assert_eq!(member(("os", "path"), "join"), Standing::Dangerous);
    // With anything but a name it is a call.
    let pickle = read(&stream(&call(name("builtins", "getattr"), &[int(1), text("x")])));
    assert!(pickle.is_used(&pickle.names()[0]));
}

#[test]
fn names_are_judged_by_what_is_known_to_be_harmless() {
    let judged = |full: &str| {
        let (module, name) = full.split_once(':').unwrap();
        judge(&Name { module: module.into(), name: name.into() }, &["mine".to_owned()])
    };
    for usual in [
        "collections:OrderedDict",
        "torch._utils:_rebuild_tensor_v2",
        "torch:FloatStorage",
        "torch:float8_e4m3fn",
        "torch:Size",
        "numpy._core.multiarray:_reconstruct",
        "__builtin__:set",
        "torch:uint7",
    ] {
        assert_eq!(judged(usual), Standing::Usual, "{usual}");
    }
    for framework in
        ["transformers.training_args:TrainingArguments", "argparse:Namespace", "mine:x", "mine.x:y"]
    {
        assert_eq!(judged(framework), Standing::Framework, "{framework}");
    }
    for dangerous in [
        "os:system",
        "posix:system",
        "builtins:eval",
        "__builtin__:exec",
        "builtins:getattr",
        "subprocess:Popen",
        "torch.hub:load",
        "torch.serialization:load",
        "importlib:import_module",
        "functools:partial",
        "sys:exit",
        "operator:attrgetter",
        "pickle:loads",
        "numpy.testing._private.utils:runstring",
    ] {
        assert_eq!(judged(dangerous), Standing::Dangerous, "{dangerous}");
    }
    for unknown in [
        "my:Thing",
        "torch:load",
        "torch:hub.load",
        "torch.nn.modules.linear:Linear",
        "numpy:load",
        "minex:y",
        "transformers.training_args:TrainingArguments.save",
        "transformers.trainer_utils:run_hp_search_optuna",
        "torch._utils:os.system",
        "torch._dynamo.x:y",
        "numpy:f2py",
    ] {
        assert_eq!(judged(unknown), Standing::Unknown, "{unknown}");
    }
}

#[test]
fn streams_that_ask_for_everything_get_little() {
    let million = 1_000_000;
    let with_tail =
        |unit: &[u8], count: usize, tail: &[u8]| [unit.repeat(count), tail.to_vec()].concat();
    let streams = [
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"X\xff\xff\xff\xffabc.".to_vec(),
        b"\x8b\xff\xff\xff\xff.".to_vec(),
        b"\x8b\xff\xff\xff\x7f.".to_vec(),
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec(),
        b"j\xff\xff\xff\xff.".to_vec(),
        // Tuples in tuples, a million deep: nothing may recurse into it.
        [b")".as_slice(), &b"\x85".repeat(million), b"."].concat(),
        // A list in itself.
        b"]2a.".to_vec(),
        b"0.".to_vec(),
        b"t.".to_vec(),
        b"(\x86.".to_vec(),
        b"a.".to_vec(),
        b"R.".to_vec(),
        b"(NNNu.".to_vec(),
        b"}(Nu.".to_vec(),
        b"I99999999999999999999999999\n.".to_vec(),
        b"Ix\n.".to_vec(),
        b"S'\n.".to_vec(),
        b"g-1\n.".to_vec(),
        b"c".to_vec(),
        Vec::new(),
    ];
    for stream in streams {
        let pickle = Pickle::read(stream, 0);
        assert!(pickle.nodes().len() <= million + 10);
        assert!(!pickle.is_too_large());
    }
    // Marks, values, one value many times, kept places: each needs memory for a byte or two.
    let names = (0..20_000).flat_map(|n: u32| format!("cm{n}\nx\n0").into_bytes()).collect();
    for stream in [
        with_tail(b"(", 3 * million, b"."),
        with_tail(b"N", 20 * million, b"."),
        [b"N".as_slice(), &b"2".repeat(40 * million), b"."].concat(),
        with_tail(b"]0", 20 * million, b"N."),
        names,
    ] {
        let pickle = Pickle::read(stream, 0);
        assert!(pickle.is_too_large());
        assert!(pickle.nodes().len() <= NODES_MAX + 2);
    }
}

#[test]
fn no_flip_and_no_cut_panics() {
    let value = dict(&[
        (
            text("state"),
            list(&[int(-5), tuple(&[text("ä")]), call(name("collections", "OrderedDict"), &[])]),
        ),
        (int(1), b"\x8c\x01x\x940h\x00G@\x04\x00\x00\x00\x00\x00\x000".to_vec()),
    ]);
    let whole = stream(&value);
    assert_eq!(read(&whole).flaw(), None);
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).root().is_none(), "cut at {len}");
    }
    for byte in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << bit;
            let pickle = read(&bytes);
            // Whatever it is now, it can be walked.
            for number in 0..pickle.nodes().len() {
                let id = pickle.id(number);
                let _ = (
                    pickle.items(id),
                    pickle.text(id),
                    pickle.attribute(id, "x"),
                    pickle.sizes(id),
                );
            }
        }
    }
}
