use super::*;

/// Numbers as a training leaves them: of like size, with noise in the last digits.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (draw() + draw() + draw()) * 0.02).collect()
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn back(stored: &[u8], bytes: usize) -> Result<Vec<u8>> {
    let mut decoded = vec![0xee; bytes];
    decode(stored, &mut decoded).map(|()| decoded)
}

#[test]
fn trained_numbers_become_smaller_and_come_back_to_the_bit() {
    let mut decoded = bytes_of(&numbers(100_000, 5));
    let whole = frames::compress(&decoded, 1).unwrap().len();
    let stored = encode(&decoded, 4, 1).unwrap().unwrap();
    assert!(stored.len() * 100 < decoded.len() * 88, "{} of {}", stored.len(), decoded.len());
    assert!(stored.len() * 105 < whole * 100, "{} against {whole}", stored.len());
    assert_eq!(back(&stored, decoded.len()).unwrap(), decoded);
    // In bfloat16 half of each number is exponent.
    decoded = decoded.chunks_exact(4).flat_map(|number| [number[2], number[3]]).collect();
    let stored = encode(&decoded, 2, 1).unwrap().unwrap();
    assert!(stored.len() * 100 < decoded.len() * 75, "{} of {}", stored.len(), decoded.len());
    assert_eq!(back(&stored, decoded.len()).unwrap(), decoded);
}

#[test]
fn any_bytes_of_any_length_come_back() {
    let mut noise = bytes_of(&numbers(5000, 9));
    noise.iter_mut().zip(1_u32..).for_each(|(byte, i)| {
        *byte = byte.wrapping_add((i.wrapping_mul(2_654_435_761) >> 13) as u8);
    });
    let special = [f32::NAN, -0.0, 0.0, 1e-45, f32::INFINITY, f32::from_bits(0x7f80_0001)];
    let mut some = 0;
    for bytes in [vec![0; 999], vec![7; 4096], bytes_of(&special.repeat(77)), noise] {
        for length in [0, 1, 2, 3, 7, 8, 9, 63, 64, 997, bytes.len()] {
            let decoded = &bytes[..length.min(bytes.len())];
            for width in WIDTHS {
                for level in [-5, 1, 9] {
                    let Some(stored) = encode(decoded, width, level).unwrap() else { continue };
                    assert!(stored.len() < decoded.len());
                    assert_eq!(back(&stored, decoded.len()).unwrap(), decoded);
                    some += 1;
                }
            }
        }
    }
    assert!(some > 50, "{some}");
    assert!(encode(&[0; 64], 3, 1).is_err());
}

#[test]
fn what_is_damaged_is_refused_or_another_chunk() {
    let decoded = bytes_of(&numbers(600, 3));
    let stored = encode(&decoded, 4, 1).unwrap().unwrap();
    for cut in 0..stored.len() {
        assert!(back(&stored[..cut], decoded.len()).is_err(), "{cut}");
    }
    let mut same = 0;
    for bit in 0..stored.len() * 8 {
        let mut flipped = stored.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // The hash tells all the others.
        same += u32::from(back(&flipped, decoded.len()).is_ok_and(|found| found == decoded));
    }
    assert!(same < 16, "{same} flips are not seen");
    for bytes in [0, 1, decoded.len() - 1, decoded.len() + 1, decoded.len() * 2] {
        assert!(back(&stored, bytes).is_err(), "{bytes}");
    }
    for wrong in [&[][..], &[4], &[3; 40], &[0; 40], &[255; 64]] {
        assert!(back(wrong, 64).is_err(), "{wrong:?}");
    }
}
