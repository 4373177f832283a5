//! Numbers modulo the Mersenne prime 2^107 - 1, and the powers that words are weighed with.

/// The modulus.
pub(super) const P: u128 = (1 << 107) - 1;

/// The base of all weights (`FORMAT.md`, "Fingerprints"): a word at place `w` weighs `R^(w + 1)`.
pub(super) const R: u128 = 0x025a_c7c5_b9a9_633c_94da_3abc_23c4;

/// `R * R_INVERSE` is 1.
pub(super) const R_INVERSE: u128 = inverse(R);

/// A word is 8 bytes.
pub(super) const WORD_BYTES: usize = 8;

/// A block is the most words whose weighted sum fits 128 bits with room to spare, and that have a
/// table of weights small enough to stay in the first cache.
const BLOCK_WORDS: usize = 512;

/// `BLOCK_WORDS` in bytes.
const BLOCK_BYTES: usize = BLOCK_WORDS * WORD_BYTES;

/// A number is `low + high * 2^LOW_BITS`, so that its product with a word leaves room for a sum.
const LOW_BITS: u32 = 54;
const LOW: u128 = (1 << LOW_BITS) - 1;

type Word = [u8; WORD_BYTES];
type Limbs = [u64; 2];

/// `R^1` to `R^BLOCK_WORDS`.
static WEIGHTS: [Limbs; BLOCK_WORDS] = weights();

/// `R^(2^i)`.
static SQUARES: [u128; 64] = squares();

/// What the weights of one block have over those of the block before.
const BLOCK_STEP: u128 = power(R, BLOCK_WORDS as u128);

const fn limbs(a: u128) -> Limbs {
    [(a & LOW) as u64, (a >> LOW_BITS) as u64]
}

/// `a` modulo `P`, of any `a`.
pub(super) const fn reduce(a: u128) -> u128 {
    let folded = (a & P) + (a >> 107);
    if folded >= P { folded - P } else { folded }
}

pub(super) const fn add(a: u128, b: u128) -> u128 {
    reduce(a + b)
}

pub(super) const fn subtract(a: u128, b: u128) -> u128 {
    if a >= b { a - b } else { a + P - b }
}

/// `low + high * 2^LOW_BITS` modulo `P`, for a `low` below 2^127 and any `high`.
const fn join(low: u128, high: u128) -> u128 {
    // 2^107 is 1, so what is above goes around.
    let wrapped = ((high << LOW_BITS) & P) + (high >> (107 - LOW_BITS));
    reduce((low & P) + (low >> 107) + wrapped)
}

/// `a * b`, both below `P`.
pub(super) const fn multiply(a: u128, b: u128) -> u128 {
    let [a_low, a_high] = limbs(a);
    let [b_low, b_high] = limbs(b);
    let low = a_low as u128 * b_low as u128;
    let middle = a_low as u128 * b_high as u128 + a_high as u128 * b_low as u128;
    let high = a_high as u128 * b_high as u128;
    // 2^(2 * LOW_BITS) is 2^108, which is 2.
    join(low + 2 * high, middle)
}

/// `a^exponent`.
const fn power(a: u128, mut exponent: u128) -> u128 {
    let (mut square, mut product) = (a, 1);
    while exponent > 0 {
        if exponent & 1 == 1 {
            product = multiply(product, square);
        }
        square = multiply(square, square);
        exponent >>= 1;
    }
    product
}

/// What gives 1 with `a`: Fermat's little theorem.
const fn inverse(a: u128) -> u128 {
    power(a, P - 2)
}

const fn weights() -> [Limbs; BLOCK_WORDS] {
    let mut table = [[0; 2]; BLOCK_WORDS];
    let mut weight = R;
    let mut w = 0;
    while w < BLOCK_WORDS {
        table[w] = limbs(weight);
        weight = multiply(weight, R);
        w += 1;
    }
    table
}

const fn squares() -> [u128; 64] {
    let mut table = [R; 64];
    let mut i = 1;
    while i < 64 {
        table[i] = multiply(table[i - 1], table[i - 1]);
        i += 1;
    }
    table
}

/// `R^words`.
pub(super) fn weight_of(words: u64) -> u128 {
    let set = SQUARES.iter().enumerate().filter(|(i, _)| words >> i & 1 == 1);
    set.fold(1, |product, (_, square)| multiply(product, *square))
}

/// The weighted sum of `bytes`, the first of which is byte `phase` of word 0, times `weight`.
pub(super) fn weigh(mut weight: u128, phase: usize, bytes: &[u8]) -> u128 {
    if phase + bytes.len() <= BLOCK_BYTES {
        return multiply(weight, weigh_few(phase, bytes));
    }
    let mut total = 0;
    let mut rest = bytes;
    if phase > 0 {
        let (head, aligned) = bytes.split_at(WORD_BYTES - phase);
        total = multiply(weight, weigh_few(phase, head));
        (weight, rest) = (multiply(weight, R), aligned);
    }
    let (pairs, rest) = rest.as_chunks::<{ 2 * BLOCK_BYTES }>();
    for pair in pairs {
        total = add(total, multiply(weight, weigh_pair(pair)));
        weight = multiply(weight, multiply(BLOCK_STEP, BLOCK_STEP));
    }
    for block in rest.chunks(BLOCK_BYTES) {
        total = add(total, multiply(weight, weigh_few(0, block)));
        weight = multiply(weight, BLOCK_STEP);
    }
    total
}

/// The weighted sum of two blocks. They are read side by side: the memory delivers two streams faster
/// than one, and each weight is loaded once.
fn weigh_pair(pair: &[u8; 2 * BLOCK_BYTES]) -> u128 {
    let (first, second) = pair.split_at(BLOCK_BYTES);
    let (mut low, mut high) = (Sum::default(), Sum::default());
    let words = first.as_chunks().0.iter().zip(second.as_chunks().0);
    for ((first, second), weight) in words.zip(&WEIGHTS) {
        low.add(weight, first);
        high.add(weight, second);
    }
    add(low.value(), multiply(BLOCK_STEP, high.value()))
}

/// The weighted sum of at most one block.
fn weigh_few(phase: usize, bytes: &[u8]) -> u128 {
    let mut sum = Sum::default();
    let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) else {
        // Fewer bytes than a word, in at most two.
        let both = bytes.iter().rev().fold(0, |both, byte| both << 8 | u128::from(*byte));
        let both = (both << (8 * phase)).to_le_bytes();
        for (word, weight) in both.as_chunks().0.iter().zip(&WEIGHTS) {
            sum.add(weight, word);
        }
        return sum.value();
    };
    let mut weights = &WEIGHTS[..];
    let mut aligned = bytes;
    if phase > 0 {
        // The shift leaves the bytes of word 0 and drops those after.
        let head = u64::from_le_bytes(*first) << (8 * phase);
        sum.add(&weights[0], &head.to_le_bytes());
        (weights, aligned) = (&weights[1..], &bytes[WORD_BYTES - phase..]);
    }
    let (words, tail) = aligned.as_chunks();
    debug_assert!(words.len() <= weights.len(), "more than one block");
    for (word, weight) in words.iter().zip(weights) {
        sum.add(weight, word);
    }
    if !tail.is_empty() {
        let tail = u64::from_le_bytes(*last) >> (8 * (WORD_BYTES - tail.len()));
        sum.add(&weights[words.len()], &tail.to_le_bytes());
    }
    sum.value()
}

/// A weighted sum of at most `BLOCK_WORDS` words, reduced only at the end.
#[derive(Default)]
struct Sum {
    low: u128,
    high: u128,
}

impl Sum {
    fn add(&mut self, [low, high]: &Limbs, word: &Word) {
        let word = u128::from(u64::from_le_bytes(*word));
        self.low += word * u128::from(*low);
        self.high += word * u128::from(*high);
    }

    fn value(&self) -> u128 {
        join(self.low, self.high)
    }
}
