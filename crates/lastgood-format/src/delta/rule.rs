//! How a chunk is predicted from others.
//!
//! A prediction is part of the format: the same operands and constants must give the same bits on every machine. So
//! each operation is one of IEEE 754 on binary64 and is then rounded to binary32 (which gives what the operation on
//! binary32 gives), subnormal numbers count as zero (a thread may be set to lose them), and what is no number is
//! predicted as zero (its bits are not determined).

use std::hint::black_box;

/// How a prediction is made. Operands are in the order in which they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// The bits of `a`; the residual is the exclusive or.
    Xor,
    /// The number `a`; the residual is a difference, as of all rules that follow.
    Difference,
    /// `c0·a`: what is left of an average of gradients.
    Scaled,
    /// `c0·v + c1·g²` with the gradient `g = m + (m' − m) ÷ c2`, of `v, m, m'`: the average of squares of Adam.
    Squares,
    /// `c0·w + (c1·m') ÷ (√v' ÷ c2 + c3)` of `w, m', v'`: the step of Adam.
    Adam,
    /// `c0·w + c1·b'` of `w, b'`: the step of gradient descent with momentum.
    Momentum,
    /// `c0·w + c1·(g + c2·b')` with `g = b' − c2·b`, of `w, b, b'`: the same as Nesterov has it.
    Nesterov,
    /// `c0·w + c1·sign(c2·m + c3·g)` with `g = m + (m' − m) ÷ c4`, of `w, m, m'`: the step of Lion.
    Sign,
    /// The bfloat16 numbers next to those of binary32 of `a` and then of `b`, ties to even: a copy of them.
    Cast,
}

impl Rule {
    /// Every rule, in the order of the codes.
    pub const ALL: &'static [Self] = &[
        Self::Xor,
        Self::Difference,
        Self::Scaled,
        Self::Squares,
        Self::Adam,
        Self::Momentum,
        Self::Nesterov,
        Self::Sign,
        Self::Cast,
    ];

    /// The code in stored chunks.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The rule of a code, if this version knows it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// How many chunks it predicts from.
    #[must_use]
    pub fn operands(self) -> usize {
        match self {
            Self::Xor | Self::Difference | Self::Scaled => 1,
            Self::Momentum | Self::Cast => 2,
            Self::Squares | Self::Adam | Self::Nesterov | Self::Sign => 3,
        }
    }

    /// How many constants it takes.
    #[must_use]
    pub fn constants(self) -> usize {
        match self {
            Self::Xor | Self::Difference | Self::Cast => 0,
            Self::Scaled => 1,
            Self::Momentum => 2,
            Self::Squares | Self::Nesterov => 3,
            Self::Adam => 4,
            Self::Sign => 5,
        }
    }

    /// The name for a person.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xor => "xor",
            Self::Difference => "difference",
            Self::Scaled => "scaled",
            Self::Squares => "squares",
            Self::Adam => "adam",
            Self::Momentum => "momentum",
            Self::Nesterov => "nesterov",
            Self::Sign => "sign",
            Self::Cast => "cast",
        }
    }

    fn is_arithmetic(self) -> bool {
        self.constants() > 0
    }
}

/// A rule with its constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The rule.
    pub rule: Rule,
    /// True if a product is added to without being rounded before: processors have an instruction for that, and
    /// libraries use it or not.
    pub fused: bool,
    /// As many as the rule takes: `c0, c1, …`.
    pub constants: Vec<f64>,
}

impl Prediction {
    /// A rule without constants.
    #[must_use]
    pub fn plain(rule: Rule) -> Self {
        Self { rule, fused: false, constants: Vec::new() }
    }

    /// Checks that this can predict `bytes` bytes of elements of `width` bytes from `operands`.
    pub(super) fn check(
        &self,
        width: usize,
        operands: &[&[u8]],
        bytes: usize,
    ) -> Result<(), String> {
        let rule = self.rule;
        let (takes, constants) = (rule.operands(), rule.constants());
        if operands.len() != takes || self.constants.len() != constants {
            return Err(format!(
                "rule {} takes {takes} operands and {constants} constants, given {} and {}",
                rule.name(),
                operands.len(),
                self.constants.len()
            ));
        }
        if let Some(other) = operands.iter().find(|operand| operand.len() != bytes) {
            return Err(format!("an operand of {} bytes for a chunk of {bytes}", other.len()));
        }
        if rule.is_arithmetic() && width != 4 {
            return Err(format!("rule {} is for elements of 4 bytes, not {width}", rule.name()));
        }
        if rule == Rule::Cast && (width != 2 || !bytes.is_multiple_of(4)) {
            return Err(format!("rule cast is for pairs of 2 bytes, not {bytes} in {width}"));
        }
        if rule.is_arithmetic() && !rounds_to_nearest() {
            return Err("this thread does not round numbers to the nearest".into());
        }
        Ok(())
    }

    /// The bits of the predictions of elements `begin..begin + out.len()`. Only for rules with constants.
    pub(super) fn predict(&self, operands: &[&[u8]], begin: usize, out: &mut [u32]) {
        let of = |i: usize| numbers(&operands[i][4 * begin..4 * (begin + out.len())]);
        let c = |i: usize| self.constants[i];
        // What a product is before something is added to it.
        let fused = self.fused;
        let product = move |a: f64, b: f64| if fused { a * b } else { round(a * b) };
        match self.rule {
            Rule::Xor | Rule::Difference | Rule::Cast => {}
            Rule::Scaled => {
                let c0 = c(0);
                each(out, of(0).map(|a| round(c0 * a)));
            }
            Rule::Squares => {
                let (c0, c1, c2) = (c(0), c(1), c(2));
                each(
                    out,
                    of(0).zip(of(1)).zip(of(2)).map(|((v, m), next)| {
                        let g = round(m + (next - m) / c2);
                        round(product(round(c1 * g), g) + round(c0 * v))
                    }),
                );
            }
            Rule::Adam => {
                let (c0, c1, c2, c3) = (c(0), c(1), c(2), c(3));
                each(
                    out,
                    of(0).zip(of(1)).zip(of(2)).map(|((w, m), v)| {
                        let root = round(round(round(v.sqrt()) / c2) + c3);
                        round(product(c0, w) + round(round(c1 * m) / root))
                    }),
                );
            }
            Rule::Momentum => {
                let (c0, c1) = (c(0), c(1));
                let of_both = of(0).zip(of(1));
                each(out, of_both.map(|(w, b)| round(round(c0 * w) + product(c1, b))));
            }
            Rule::Nesterov => {
                let (c0, c1, c2) = (c(0), c(1), c(2));
                each(
                    out,
                    of(0).zip(of(1)).zip(of(2)).map(|((w, b), next)| {
                        let g = round(next - round(c2 * b));
                        let direction = round(g + product(c2, next));
                        round(round(c0 * w) + product(c1, direction))
                    }),
                );
            }
            Rule::Sign => {
                let (c0, c1, c2, c3, c4) = (c(0), c(1), c(2), c(3), c(4));
                each(
                    out,
                    of(0).zip(of(1)).zip(of(2)).map(|((w, m), next)| {
                        let g = round(m + (next - m) / c4);
                        let toward = round(round(c2 * m) + product(c3, g));
                        let sign =
                            f64::from(u8::from(toward > 0.0)) - f64::from(u8::from(toward < 0.0));
                        round(round(c0 * w) + round(c1 * sign))
                    }),
                );
            }
        }
    }
}

/// The bits of the bfloat16 number next to one of binary32, of two the even one; of what is no number always the same.
#[must_use]
pub fn nearest_bfloat16(bytes: [u8; 4]) -> u16 {
    let bits = u32::from_le_bytes(bytes);
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return 0x7fc0;
    }
    // It stays below 2^32: the largest is an infinity, whose lower half is 0.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn each(out: &mut [u32], predicted: impl Iterator<Item = f64>) {
    for (out, predicted) in out.iter_mut().zip(predicted) {
        let predicted = predicted as f32;
        *out = if predicted.is_nan() { 0 } else { predicted.to_bits() };
    }
}

/// The binary32 numbers of `bytes`; subnormal ones as zero.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = f64> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| {
        let bits = u32::from_le_bytes(*bytes);
        let is_normal = bits & 0x7f80_0000 != 0;
        f64::from(f32::from_bits(if is_normal { bits } else { 0 }))
    })
}

/// The nearest number of binary32; zero for what would be subnormal.
fn round(number: f64) -> f64 {
    let rounded = f64::from(number as f32);
    if number.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { rounded }
}

/// A program may have set the thread that started this one to round otherwise.
fn rounds_to_nearest() -> bool {
    let (one, less, more) = (black_box(1.0_f64), black_box(1e-17), black_box(3e-16));
    let (up, down) = (one + less, one - less);
    (up, down) == (1.0, 1.0) && one + more > 1.0 && black_box(-1.0_f64) - more < -1.0
}
