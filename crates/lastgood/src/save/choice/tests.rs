use super::*;

const GB: u64 = 1_000_000_000;

#[test]
fn deltas_are_for_slow_stores_that_they_help_and_memory_that_is_there() {
    let good = Facts {
        store: Some(0.1e9),
        share: Some(0.5),
        memory: Some(20 * GB),
        state: 3 * GB,
        kept: false,
    };
    let delta = Compression::Delta { chain: CHAIN_DEFAULT };
    let (zstd, off) = (Compression::Zstd(1), Compression::Off);
    for (facts, compression, said) in [
        (good, delta, "delta: the store takes 100 MB a second; deltas of a sample take 0.50"),
        (Facts { store: None, ..good }, off, "off: how fast the store is is not known yet"),
        (
            Facts { store: Some(1.2e9), ..good },
            off,
            "off: the store takes 1.2 GB a second, so that",
        ),
        (Facts { store: Some(0.4e9), ..good }, off, "encoding would take longer"),
        (
            Facts { share: None, ..good },
            zstd,
            "zstd:1: the store takes 100 MB a second; what deltas",
        ),
        (Facts { share: Some(0.81), ..good }, zstd, "not worth a second copy"),
        // Who has begun goes on for longer: it does not change with every save.
        (Facts { share: Some(0.81), kept: true, ..good }, delta, "20.0 GB of memory stay free"),
        (Facts { share: Some(0.91), kept: true, ..good }, zstd, "not worth a second copy"),
        (Facts { memory: None, ..good }, zstd, "how much memory is free is not known"),
        (
            Facts { memory: Some(4 * GB), ..good },
            zstd,
            "only 1.0 GB of memory stay free, less than",
        ),
        (Facts { memory: Some(5 * GB), ..good }, delta, "2.0 GB of memory stay free"),
        // A large state wants a larger margin.
        (Facts { state: 12 * GB, memory: Some(14 * GB), ..good }, zstd, "less than 3.0 GB"),
        // The second copy is there already.
        (Facts { memory: Some(2 * GB), kept: true, ..good }, delta, "2.0 GB of memory stay free"),
        (Facts { memory: Some(GB), kept: true, ..good }, zstd, "only 1.0 GB of memory stay free"),
    ] {
        let choice = Choice::new(&facts);
        assert_eq!(choice.compression, compression, "{facts:?}: {}", choice.why);
        assert!(choice.why.contains(said), "{}", choice.why);
        assert_eq!(choice, Choice::new(&facts));
    }
}
