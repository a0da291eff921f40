//! `nlctrl`: the family that describes the families of a control socket.

use netlink::Errno;

use crate::command;
use crate::eswitch_family;
use crate::family::Family;
use crate::numbers::{CONTROL, control};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::{Attributes, split};

/// A request to `nlctrl`: the families to describe.
pub(crate) struct Request(Vec<Family>);

impl Request {
    /// Decodes a request.
    ///
    /// # Errors
    /// EOPNOTSUPP: it is not CTRL_CMD_GETFAMILY. EINVAL: it names no family and is no dump. ENOENT: no family has the
    /// name and number that it gives.
    pub fn parse(is_dump: bool, payload: &[u8]) -> Result<Self, Refusal> {
        let (command, attributes) = split(payload)?;
        if command != control::GETFAMILY {
            return Err(Refusal::unsupported("of nlctrl this socket supports only CTRL_CMD_GETFAMILY"));
        }
        let mut families = families();
        if is_dump {
            return Ok(Self(families));
        }
        let attributes = Attributes::of_request(attributes, &[control::FAMILY_ID, control::FAMILY_NAME])?;
        let (number, name) = (attributes.u16(control::FAMILY_ID)?, attributes.text(control::FAMILY_NAME)?);
        if number.is_none() && name.is_none() {
            return Err(Refusal::bare(Errno::INVAL));
        }
        families.retain(|family| {
            number.is_none_or(|number| number == family.number) && name.is_none_or(|name| name == family.name)
        });
        if families.is_empty() { Err(Refusal::bare(Errno::NOENT)) } else { Ok(Self(families)) }
    }

    /// Adds a description of each family to the reply.
    pub fn answer(&self, reply: &mut ReplyWriter<'_>) {
        for family in &self.0 {
            reply.add(control::NEWFAMILY, |to| family.write(to));
        }
    }
}

fn families() -> Vec<Family> {
    let nlctrl = Family {
        name: "nlctrl",
        number: CONTROL,
        version: 2,
        max_attribute: 10,
        operations: vec![(control::GETFAMILY, control::CAN_DO | control::CAN_DUMP | control::HAS_POLICY)],
        groups: &[],
    };
    vec![nlctrl, command::family(), eswitch_family::family()]
}
