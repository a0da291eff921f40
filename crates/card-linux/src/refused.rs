//! What a refusal of the kernel means to the card's user.

use std::io;

use eswitch::card::CardError;
use eswitch::names::NetdevName;
use netlink::{Errno, errno_of, strerror, without_number};

use crate::socket::Failure;

/// The error for a request that the kernel has refused. `call`: what was being done; `name`: the name that the request
/// gives to a netdev, if it gives one.
pub(crate) fn refused(call: &str, failure: &Failure, name: Option<&NetdevName>) -> CardError {
    let hint = match failure.errno {
        Errno::EXIST if name.is_some() => {
            let name = name.map(|n| n.name.clone()).unwrap_or_default();
            return CardError::NameTaken { name };
        }
        Errno::XFULL => {
            let text = format!("{call}: a Linux bridge takes 1023 ports and this one has them; ask for fewer VFs");
            return CardError::Full(text);
        }
        Errno::PERM | Errno::ACCESS => "; this takes root, or a place made without root",
        Errno::OPNOTSUPP => "; the kernel needs veth, bridge, sch_ingress, cls_u32 and act_mirred, perhaps as modules",
        Errno::NOBUFS | Errno::NOMEM => "; the kernel is out of memory for this: try with fewer",
        _ => "",
    };
    CardError::Kernel {
        call: call.to_owned(),
        errno: failure.errno.raw_os_error(),
        text: if failure.message.is_empty() { strerror(failure.errno) } else { failure.message.clone() },
        hint: hint.to_owned(),
    }
}

/// The error for a system call, or a query, that has failed.
pub(crate) fn refused_io(call: &str, error: &io::Error) -> CardError {
    CardError::Kernel {
        call: call.to_owned(),
        errno: errno_of(error).raw_os_error(),
        text: without_number(error),
        hint: if error.kind() == io::ErrorKind::NotFound {
            "; `ip netns list` shows the namespaces that have names".to_owned()
        } else {
            String::new()
        },
    }
}
