//! Instructions that would import or call something.

use super::super::node::{Call, Id, Node};
use super::super::{Name, TEXT_BYTES_MAX};
use super::{Machine, Step, flaw};

impl Machine<'_> {
    pub(super) fn import_or_call(&mut self, op: u8) -> Step {
        match op {
            b'c' => {
                let id = self.global_of_lines()?;
                self.stack.push(id);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let id = self.global_of_nodes(module, name);
                self.stack.push(id);
            }
            b'i' => {
                let callee = self.global_of_lines()?;
                let args = self.pop_mark()?;
                let args = self.add(Node::Tuple(args));
                self.call(callee, args);
            }
            b'o' => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return flaw("the stack is empty");
                }
                let callee = args.remove(0);
                let args = self.add(Node::Tuple(args));
                self.call(callee, args);
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                let callee = self.pop()?;
                self.call(callee, args);
            }
            0x92 => {
                let _by_name = self.pop()?;
                let args = self.pop()?;
                let callee = self.pop()?;
                self.call(callee, args);
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                if let Node::Call(call) = &mut self.nodes[target.0 as usize] {
                    call.state = Some(state);
                } else {
                    self.opaque.push("it sets the state of something that it did not make");
                }
            }
            op => {
                let _code = self.number(1 << (op - 0x82))?;
                self.opaque.push("it imports by a number of the extension registry");
                let id = self.add(Node::Opaque);
                self.stack.push(id);
            }
        }
        Ok(())
    }

    fn add(&mut self, node: Node) -> Id {
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(node);
        id
    }

    fn call(&mut self, callee: Id, args: Id) {
        let id = match self.attribute_of_name(callee, args) {
            Some(id) => id,
            None => {
                if !matches!(self.nodes[callee.0 as usize], Node::Name(_)) {
                    self.opaque
                        .push("it calls something that has no name, such as what a call gave");
                }
                let (state, items, pairs) = (None, Vec::new(), Vec::new());
                self.add(Node::Call(Box::new(Call { callee, args, state, items, pairs })))
            }
        };
        self.stack.push(id);
    }

    /// `getattr(name, "member")`, which is how some enumerations are pickled, names the member.
    fn attribute_of_name(&mut self, callee: Id, args: Id) -> Option<Id> {
        let Node::Name(number) = self.nodes[callee.0 as usize] else { return None };
        if !self.names[number as usize].is_getattr() {
            return None;
        }
        let Node::Tuple(args) = &self.nodes[args.0 as usize] else { return None };
        let [of, member] = args[..] else { return None };
        let (Node::Name(of), Node::Text(member)) =
            (&self.nodes[of.0 as usize], &self.nodes[member.0 as usize])
        else {
            return None;
        };
        let Name { module, name } = self.names[*of as usize].clone();
        if member.len() > TEXT_BYTES_MAX || name.len() > TEXT_BYTES_MAX {
            return None;
        }
        let member = String::from_utf8_lossy(&self.bytes[member.clone()]).into_owned();
        Some(self.global(Name { module, name: format!("{name}.{member}") }))
    }

    fn global_of_lines(&mut self) -> Step<Id> {
        let (module, name) = (self.line()?, self.line()?);
        if module.len() > TEXT_BYTES_MAX || name.len() > TEXT_BYTES_MAX {
            return Ok(self.unnamed());
        }
        let text = |range| String::from_utf8_lossy(&self.bytes[range]).into_owned();
        let name = Name { module: text(module), name: text(name) };
        Ok(self.global(name))
    }

    fn global_of_nodes(&mut self, module: Id, name: Id) -> Id {
        let text = |id: Id| match &self.nodes[id.0 as usize] {
            Node::Text(range) if range.len() <= TEXT_BYTES_MAX => {
                Some(String::from_utf8_lossy(&self.bytes[range.clone()]).into_owned())
            }
            _ => None,
        };
        match (text(module), text(name)) {
            (Some(module), Some(name)) => self.global(Name { module, name }),
            _ => self.unnamed(),
        }
    }

    fn unnamed(&mut self) -> Id {
        self.opaque.push("it imports a name that it computes, or an endless one");
        self.add(Node::Opaque)
    }

    fn global(&mut self, name: Name) -> Id {
        let number = match self.numbers.get(&name) {
            Some(number) => *number,
            None => {
                let number = self.names.len() as u32;
                self.names.push(name.clone());
                self.numbers.insert(name, number);
                number
            }
        };
        self.add(Node::Name(number))
    }
}
