use super::*;

/// The same numbers for the same seed.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// About as a training leaves them.
    fn number(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    }
}

const SPECIAL: [u32; 12] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x7f7f_ffff,
    0x0080_0000,
    0x007f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0xffff_ffff,
];

/// Bytes of every kind: alike, noise, special numbers, constants.
fn bytes(kind: u64, count: usize, draw: &mut Draw) -> Vec<u8> {
    let words = (0..count.div_ceil(4)).map(|i| match kind % 5 {
        0 => draw.number().to_bits(),
        1 => draw.next() as u32,
        2 => SPECIAL[(draw.next() % 12) as usize],
        3 => 0x3f80_0000,
        _ if i % 97 == 0 => draw.next() as u32,
        _ => 0,
    });
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    bytes.truncate(count);
    bytes
}

fn constants(rule: Rule, draw: &mut Draw) -> Vec<f64> {
    let wild = draw.next().is_multiple_of(3);
    let constant = |_| match wild {
        true => f64::from_bits(draw.next()),
        false => f64::from(draw.number()) * 10.0,
    };
    (0..rule.constants()).map(constant).collect()
}

fn back(stored: &[u8], operands: &[Operand<'_>], bytes: usize) -> Result<Vec<u8>> {
    let mut decoded = vec![0xee; bytes];
    decode(stored, operands, &mut decoded).map(|()| decoded)
}

fn named(bytes: &[Vec<u8>]) -> Vec<Operand<'_>> {
    bytes.iter().map(|bytes| Operand { hash: Hash::of(bytes), bytes }).collect()
}

#[test]
fn whatever_is_predicted_the_chunk_comes_back() {
    let mut draw = Draw(11);
    let mut seen = [0; Rule::ALL.len()];
    for round in 0..4000u64 {
        let rule = Rule::ALL[(round % Rule::ALL.len() as u64) as usize];
        let width = match rule.constants() {
            _ if rule == Rule::Cast => 2,
            0 => WIDTHS[(draw.next() % 4) as usize],
            _ => 4,
        };
        let count =
            [0, 1, 3, 4, 5, 63, 64, 1000, 4095, 4096, 4100, 9001][(draw.next() % 12) as usize];
        let count = if rule == Rule::Cast { count / 4 * 4 } else { count };
        let decoded = bytes(draw.next(), count, &mut draw);
        let operands: Vec<_> =
            (0..rule.operands()).map(|_| bytes(draw.next(), count, &mut draw)).collect();
        let mut operands = named(&operands).into_iter().collect::<Vec<_>>();
        // Often most of it is the same.
        let near = decoded.clone();
        if round % 3 == 0 {
            operands[0] = Operand { hash: Hash::of(&near), bytes: &near };
        }
        let fused = draw.next().is_multiple_of(2);
        let prediction = Prediction { rule, fused, constants: constants(rule, &mut draw) };
        let Some(stored) = encode(&decoded, width, &prediction, &operands, 1).unwrap() else {
            continue;
        };
        assert!(stored.len() < decoded.len());
        assert_eq!(back(&stored, &operands, count).unwrap(), decoded, "{prediction:?}");
        assert_eq!(parse(&stored).unwrap().operands.len(), rule.operands());
        seen[usize::from(rule.code())] += 1;
    }
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}

/// One step of AdamW in numbers of binary32, as a library takes it.
fn adamw_step(state: &mut [[f32; 3]], draw: &mut Draw, step: i32) {
    let (b1, b2, lr) = (0.9f64, 0.999f64, 3e-4f64);
    let root = (1.0 - b2.powi(step)).sqrt() as f32;
    for [w, m, v] in state {
        let g = draw.number() * 0.1;
        *w *= (1.0 - lr * 0.1) as f32;
        *m += (g - *m) * (1.0 - b1) as f32;
        *v = *v * b2 as f32 + ((1.0 - b2) as f32 * g) * g;
        *w += ((-lr / (1.0 - b1.powi(step))) as f32 * *m) / (v.sqrt() / root + 1e-8);
    }
}

#[test]
fn what_an_optimizer_made_is_predicted() {
    let mut draw = Draw(5);
    let mut state: Vec<[f32; 3]> = (0..50_000).map(|_| [draw.number(), 0.0, 0.0]).collect();
    for step in 1..60 {
        adamw_step(&mut state, &mut draw, step);
    }
    let of = |state: &[[f32; 3]], i: usize| -> Vec<u8> {
        state.iter().flat_map(|numbers| numbers[i].to_le_bytes()).collect()
    };
    let before: Vec<Vec<u8>> = (0..3).map(|i| of(&state, i)).collect();
    adamw_step(&mut state, &mut draw, 60);
    let after: Vec<Vec<u8>> = (0..3).map(|i| of(&state, i)).collect();
    let f = |number: f64| f64::from(number as f32);
    let (b1, b2, lr) = (0.9f64, 0.999f64, 3e-4f64);
    let predict = |rule, constants: &[f64], operands: [&Vec<u8>; 3], of: &Vec<u8>| {
        let prediction = Prediction { rule, fused: false, constants: constants.to_vec() };
        let operands: Vec<Vec<u8>> =
            operands[..rule.operands()].iter().map(|bytes| (*bytes).clone()).collect();
        let operands = named(&operands);
        let stored = encode(of, 4, &prediction, &operands, 1).unwrap().unwrap();
        assert_eq!(back(&stored, &operands, of.len()).unwrap(), *of);
        stored.len() as f64 / of.len() as f64
    };
    let [w, m, v] = [0, 1, 2].map(|i| &before[i]);
    let moment = predict(Rule::Scaled, &[f(b1)], [m, m, m], &after[1]);
    let squares =
        predict(Rule::Squares, &[f(b2), f(1.0 - b2), f(1.0 - b1)], [v, m, &after[1]], &after[2]);
    let root = f((1.0 - b2.powi(60)).sqrt());
    let step = [f(1.0 - lr * 0.1), f(-lr / (1.0 - b1.powi(60))), root, f(1e-8)];
    let weights = predict(Rule::Adam, &step, [w, &after[1], &after[2]], &after[0]);
    assert!(moment < 0.86 && squares < 0.06 && weights < 0.005, "{moment} {squares} {weights}");
    // What a delta of the numbers alone would take.
    let plain = predict(Rule::Difference, &[], [w, w, w], &after[0]);
    assert!(plain > 0.4, "{plain}");
}

/// As libraries round: to the nearest, of two to the even one.
#[test]
fn a_cast_is_what_libraries_make_of_numbers() {
    for (number, nearest) in [
        (0x3f80_0000, 0x3f80),
        (0x3f80_7fff, 0x3f80),
        (0x3f80_8000, 0x3f80),
        (0x3f80_8001, 0x3f81),
        (0x3f81_8000, 0x3f82),
        (0xbf81_8000, 0xbf82),
        (0x7f7f_ffff, 0x7f80),
        (0xff80_0000, 0xff80),
        (0x0000_0001, 0x0000),
        (0x8000_8001, 0x8001),
        (0x7f80_0001, 0x7fc0),
        (0xffff_ffff, 0x7fc0),
    ] {
        let found = nearest_bfloat16(u32::to_le_bytes(number));
        assert_eq!(found, nearest, "{number:#x}: {found:#x}");
    }
    let mut draw = Draw(17);
    let numbers: Vec<Vec<u8>> = (0..2).map(|_| bytes(0, 40_000, &mut draw)).collect();
    let words = numbers.iter().flat_map(|part| part.as_chunks::<4>().0);
    let copy: Vec<u8> = words.flat_map(|word| nearest_bfloat16(*word).to_le_bytes()).collect();
    let operands = named(&numbers);
    let cast = Prediction::plain(Rule::Cast);
    let stored = encode(&copy, 2, &cast, &operands, 1).unwrap().unwrap();
    assert!(stored.len() < 110, "{}", stored.len());
    assert_eq!(back(&stored, &operands, copy.len()).unwrap(), copy);
    // Some of them were rounded otherwise.
    let mut other = copy;
    (0..other.len()).step_by(800).for_each(|at| other[at] ^= 1);
    let stored = encode(&other, 2, &cast, &operands, 1).unwrap().unwrap();
    assert!(stored.len() < 400, "{}", stored.len());
    assert_eq!(back(&stored, &operands, other.len()).unwrap(), other);
}

#[test]
fn few_changes_take_few_bytes() {
    let mut draw = Draw(3);
    let before = bytes(0, 200_000, &mut draw);
    let mut after = before.clone();
    // One number of two bytes in forty is another, by one in its last place.
    for element in after.as_chunks_mut::<2>().0.iter_mut() {
        if draw.next().is_multiple_of(40) {
            *element = (u16::from_le_bytes(*element) ^ 1).to_le_bytes();
        }
    }
    let operands = [before];
    let operands = named(&operands);
    let prediction = Prediction::plain(Rule::Difference);
    let stored = encode(&after, 2, &prediction, &operands, 1).unwrap().unwrap();
    assert!(stored.len() * 60 < after.len(), "{}", stored.len());
    assert_eq!(back(&stored, &operands, after.len()).unwrap(), after);
    // Nothing changed at all.
    let stored = encode(operands[0].bytes, 2, &prediction, &operands, 1).unwrap().unwrap();
    assert!(stored.len() < 80, "{}", stored.len());
}

#[test]
fn damage_and_other_operands_are_refused() {
    let mut draw = Draw(8);
    let before = bytes(0, 4000, &mut draw);
    for changes in [9, 300] {
        let mut after = before.clone();
        (0..changes).for_each(|i| after[i * 13] ^= 5);
        let operands = [before.clone()];
        let operands = named(&operands);
        let prediction = Prediction::plain(Rule::Xor);
        let stored = encode(&after, 4, &prediction, &operands, 1).unwrap().unwrap();
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&flipped).is_err(), "bit {bit}");
        }
        for cut in 0..stored.len() {
            assert!(back(&stored[..cut], &operands, after.len()).is_err(), "{cut}");
        }
        let others = [after.clone()];
        let error = back(&stored, &named(&others), after.len()).unwrap_err();
        assert!(error.message().contains("other chunks"), "{error}");
        assert!(back(&stored, &[], after.len()).is_err());
        assert!(back(&stored, &operands, after.len() - 4).is_err());
    }
}

/// Bytes that were sealed anew after they were changed reach what is behind the seal.
#[test]
fn hostile_residuals_are_refused_or_give_other_bytes() {
    let mut draw = Draw(21);
    let before = bytes(0, 3000, &mut draw);
    let operands = [before.clone()];
    let operands = named(&operands);
    let mut refused = 0;
    for (changes, rule) in [(7, Rule::Xor), (700, Rule::Difference), (0, Rule::Scaled)] {
        let mut after = before.clone();
        (0..changes).for_each(|i| after[i * 4] ^= 3);
        let prediction = Prediction { rule, fused: false, constants: vec![1.0; rule.constants()] };
        let stored = encode(&after, 4, &prediction, &operands, 1).unwrap().unwrap();
        for round in 0..4000 {
            let mut hostile = stored.clone();
            for _ in 0..=round % 3 {
                let at = 32 + (draw.next() as usize % (hostile.len() - 32));
                hostile[at] = draw.next() as u8;
            }
            if round % 5 == 0 {
                hostile.truncate(32 + draw.next() as usize % (hostile.len() - 32));
            }
            let seal = Hash::of(&hostile[32..]);
            hostile[..32].copy_from_slice(seal.as_bytes());
            refused += u32::from(back(&hostile, &operands, after.len()).is_err());
        }
    }
    assert!(refused > 3000, "{refused}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (a, short) = (vec![1u8; 64], vec![1u8; 60]);
    let of =
        |rule, constants: usize| Prediction { rule, fused: false, constants: vec![0.5; constants] };
    let a = Operand { hash: Hash::of(&a), bytes: &a };
    let short = Operand { hash: Hash::of(&short), bytes: &short };
    for (width, prediction, operands, said) in [
        (4, of(Rule::Xor, 0), vec![], "takes 1 operands"),
        (4, of(Rule::Scaled, 0), vec![a], "1 constants"),
        (2, of(Rule::Scaled, 1), vec![a], "elements of 4 bytes"),
        (4, of(Rule::Xor, 0), vec![short], "60 bytes for a chunk of 64"),
        (2, of(Rule::Cast, 0), vec![a], "takes 2 operands"),
        (4, of(Rule::Cast, 0), vec![a, a], "pairs of 2 bytes"),
    ] {
        let error = encode(&[2; 64], width, &prediction, &operands, 1).unwrap_err();
        assert!(error.message().contains(said), "{error}");
    }
}
