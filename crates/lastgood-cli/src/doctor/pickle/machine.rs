//! The stack machine.

mod imports;

use std::collections::BTreeMap;
use std::ops::Range;

use super::node::{Id, Node};
use super::{NODES_MAX, Name, Pickle};

/// The most that is on the stack, is marked or is kept, and the most that is ever put on the stack: all need
/// memory, and instructions of one byte make them.
const STACK_MAX: usize = 2 * NODES_MAX;
const MARKS_MAX: usize = 1_000_000;
const PUSHES_MAX: usize = 8 * NODES_MAX;
/// The most different names; checkpoints have some dozens.
const NAMES_MAX: usize = 10_000;
/// The longest line of the text protocol that is taken for a number.
const DIGITS_MAX: usize = 4096;

/// Why the machine stops.
enum Stop {
    Done(Id),
    Flaw(String),
    TooLarge,
}

type Step<T = ()> = Result<T, Stop>;

fn flaw<T>(text: impl Into<String>) -> Step<T> {
    Err(Stop::Flaw(text.into()))
}

struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    nodes: Vec<Node>,
    names: Vec<Name>,
    numbers: BTreeMap<Name, u32>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
    opaque: Vec<&'static str>,
    pushes: usize,
}

pub(super) fn run(bytes: Vec<u8>, begin: usize) -> Pickle {
    let mut machine = Machine {
        bytes: &bytes,
        at: begin,
        nodes: Vec::new(),
        names: Vec::new(),
        numbers: BTreeMap::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        opaque: Vec::new(),
        pushes: 0,
    };
    let stop = loop {
        if let Err(stop) = machine.step() {
            break stop;
        }
    };
    let Machine { at, nodes, names, mut opaque, .. } = machine;
    opaque.sort_unstable();
    opaque.dedup();
    let (root, flaw, too_large) = match stop {
        Stop::Done(root) => (Some(root), None, false),
        Stop::Flaw(text) => (None, Some(format!("at byte {at}: {text}")), false),
        Stop::TooLarge => (None, Some("more values or names than are read here".to_owned()), true),
    };
    Pickle { bytes, nodes, names, root, end: at, flaw, opaque, too_large }
}

impl Machine<'_> {
    fn step(&mut self) -> Step {
        self.pushes += 1;
        if self.nodes.len() > NODES_MAX
            || self.stack.len() > STACK_MAX
            || self.marks.len() > MARKS_MAX
            || self.memo.len() > NODES_MAX
            || self.names.len() > NAMES_MAX
            || self.opaque.len() > MARKS_MAX
            || self.pushes > PUSHES_MAX
        {
            return Err(Stop::TooLarge);
        }
        let op = self.take(1)?;
        match self.bytes[op.start] {
            b'.' => {
                let root = self.pop()?;
                return Err(Stop::Done(root));
            }
            0x80 => {
                let version = self.number(1)?;
                if version > 5 {
                    return flaw(format!("protocol {version}, 0 to 5 are known"));
                }
            }
            0x95 => self.frame()?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => match self.marks.last() == Some(&self.stack.len()) {
                true => drop(self.marks.pop()),
                false => drop(self.pop()?),
            },
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            op @ (b'N' | 0x88 | 0x89 | b'F' | b'I' | b'J' | b'K' | b'L' | b'M' | b'G' | 0x8a
            | 0x8b) => self.scalar(op)?,
            op @ (b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d) => self.text(op)?,
            op @ (b'B' | b'C' | 0x8e | 0x96) => self.blob(op)?,
            op @ (b']' | b'}' | b')' | 0x8f | b'l' | b'd' | b't' | 0x91 | 0x85 | 0x86 | 0x87) => {
                self.collect(op)?;
            }
            op @ (b'a' | b'e' | b's' | b'u' | 0x90) => self.extend(op)?,
            op @ (b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94) => self.memoize(op)?,
            op @ (b'c' | b'i' | b'o' | 0x93 | b'R' | 0x81 | 0x92 | b'b' | 0x82 | 0x83 | 0x84) => {
                self.import_or_call(op)?;
            }
            b'P' => {
                let line = self.line()?;
                let name = self.push(Node::Text(line))?;
                self.stack.pop();
                self.push(Node::Persistent(name))?;
            }
            b'Q' => {
                let name = self.pop()?;
                self.push(Node::Persistent(name))?;
            }
            0x97 => {
                self.push(Node::Opaque)?;
            }
            0x98 => drop(self.top()?),
            other => return flaw(format!("there is no instruction 0x{other:02x}")),
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Step<Range<usize>> {
        match self.at.checked_add(count) {
            Some(end) if end <= self.bytes.len() => {
                let begin = std::mem::replace(&mut self.at, end);
                Ok(begin..end)
            }
            _ => flaw(format!("{count} more bytes are needed, {} are left", self.left())),
        }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// A little-endian number of so many bytes.
    fn number(&mut self, count: usize) -> Step<u64> {
        let range = self.take(count)?;
        Ok(self.bytes[range].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// As many bytes as a number of so many bytes says.
    fn counted(&mut self, count: usize) -> Step<Range<usize>> {
        let len = self.number(count)?;
        match usize::try_from(len) {
            Ok(len) => self.take(len),
            Err(_) => flaw(format!("{len} more bytes are needed, {} are left", self.left())),
        }
    }

    /// The rest of the line, without its end.
    fn line(&mut self) -> Step<Range<usize>> {
        let Some(len) = self.bytes[self.at..].iter().position(|byte| *byte == b'\n') else {
            return flaw("a line without an end");
        };
        let line = self.take(len)?;
        self.at += 1;
        Ok(line)
    }

    fn frame(&mut self) -> Step {
        let len = self.number(8)?;
        if len > self.left() as u64 {
            return flaw(format!("a frame of {len} bytes, {} are left", self.left()));
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Step<Id> {
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(node);
        self.stack.push(id);
        Ok(id)
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(top) if self.stack.len() > self.floor() => Ok(*top),
            _ => flaw("the stack is empty"),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => flaw("there is no mark"),
        }
    }

    fn scalar(&mut self, op: u8) -> Step {
        let node = match op {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i64::from(self.number(4)? as u32 as i32)),
            b'K' => Node::Int(self.number(1)? as i64),
            b'M' => Node::Int(self.number(2)? as i64),
            b'G' => Node::Float(f64::from_bits(self.number(8)?.swap_bytes())),
            0x8a | 0x8b => {
                let range = self.counted(if op == 0x8a { 1 } else { 4 })?;
                integer(&self.bytes[range])
            }
            _ => {
                let line = self.line()?;
                let line = &self.bytes[line];
                let Some(node) = number_of_line(op, line) else {
                    return flaw("a line that should be a number is none");
                };
                node
            }
        };
        self.push(node).map(drop)
    }

    fn text(&mut self, op: u8) -> Step {
        let range = match op {
            b'S' => {
                let line = self.line()?;
                let quoted = line.len() >= 2
                    && matches!(self.bytes[line.start], b'\'' | b'"')
                    && self.bytes[line.end - 1] == self.bytes[line.start];
                match quoted {
                    true => line.start + 1..line.end - 1,
                    false => return flaw("a text without quotes"),
                }
            }
            b'V' => self.line()?,
            b'U' | 0x8c => self.counted(1)?,
            b'T' | b'X' => self.counted(4)?,
            _ => self.counted(8)?,
        };
        // Escapes of the text protocols are left as they are: nothing that is looked for has one, and a
        // module whose name is hidden behind one is no name that is usual.
        self.push(Node::Text(range)).map(drop)
    }

    fn blob(&mut self, op: u8) -> Step {
        let range = match op {
            b'C' => self.counted(1)?,
            b'B' => self.counted(4)?,
            _ => self.counted(8)?,
        };
        self.push(Node::Bytes(range)).map(drop)
    }

    fn collect(&mut self, op: u8) -> Step {
        let node = match op {
            b']' => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b')' => Node::Tuple(Vec::new()),
            0x8f => Node::Set(Vec::new()),
            b'l' => Node::List(self.pop_mark()?),
            b't' => Node::Tuple(self.pop_mark()?),
            0x91 => Node::Set(self.pop_mark()?),
            b'd' => Node::Dict(pairs(&self.pop_mark()?)?),
            op => {
                let count = usize::from(op - 0x84);
                if self.stack.len() < self.floor() + count {
                    return flaw("the stack is empty");
                }
                Node::Tuple(self.stack.split_off(self.stack.len() - count))
            }
        };
        self.push(node).map(drop)
    }

    fn extend(&mut self, op: u8) -> Step {
        let items = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        match (op, &mut self.nodes[target.0 as usize]) {
            (b'a' | b'e', Node::List(to)) | (0x90, Node::Set(to)) => to.extend(items),
            (b'a' | b'e' | 0x90, Node::Call(call)) => call.items.extend(items),
            (b's' | b'u', Node::Dict(to)) => to.extend(pairs(&items)?),
            (b's' | b'u', Node::Call(call)) => call.pairs.extend(pairs(&items)?),
            // Python would call a method of something that is no container.
            _ => return flaw("something is put into what is no container"),
        }
        Ok(())
    }

    fn memoize(&mut self, op: u8) -> Step {
        let key = match op {
            0x94 => self.memo.len() as u64,
            b'h' | b'q' => self.number(1)?,
            b'j' | b'r' => self.number(4)?,
            _ => {
                let line = self.line()?;
                match number_of_line(b'I', &self.bytes[line]) {
                    Some(Node::Int(key)) if key >= 0 => key as u64,
                    _ => return flaw("a line that should be a number is none"),
                }
            }
        };
        let Ok(key) = u32::try_from(key) else { return flaw("a memo of more than 32 bits") };
        if matches!(op, b'g' | b'h' | b'j') {
            return match self.memo.get(&key) {
                Some(id) => {
                    self.stack.push(*id);
                    Ok(())
                }
                None => flaw(format!("nothing was kept as {key}")),
            };
        }
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return flaw("a key without a value");
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// A little-endian number in two's complement.
fn integer(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Large;
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut whole = if negative { [0xff; 8] } else { [0; 8] };
    whole[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(whole))
}

fn number_of_line(op: u8, line: &[u8]) -> Option<Node> {
    let text = std::str::from_utf8(line).ok()?.trim();
    if text.len() > DIGITS_MAX {
        return None;
    }
    match (op, text) {
        (b'F', text) => text.parse().ok().map(Node::Float),
        (b'I', "00") => Some(Node::Bool(false)),
        (b'I', "01") => Some(Node::Bool(true)),
        (_, text) => {
            let digits = text.strip_suffix('L').unwrap_or(text);
            let is_number = !digits.is_empty()
                && digits.strip_prefix('-').unwrap_or(digits).bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse().map_or(Node::Large, Node::Int))
        }
    }
}
