//! Takes steps, written as words, on a card behind a control socket.

use control::Query;
use devlink::numbers::{attribute as a, command as c, function};
use devlink::{Answered, Client, ClientError, DEVLINK};
use eswitch::{CardConfig, PciAddress};
use netlink::{Builder, find};
use scenario::Action;

/// Takes a step on a card: a command, or a query of an E-Switch or of ports; the answer as text.
pub fn perform(client: &mut Client, words: &str) -> Result<String, String> {
    let card = CardConfig { pfs: 4, ..CardConfig::default() };
    let step = Action::parse(words, &card).unwrap_or_else(|error| panic!("`{words}`: {error}"));
    let text = |error: ClientError| error.to_string();
    match step {
        Action::Command(command) => client.perform(&command).map(|_| String::new()).map_err(text),
        Action::Query(Query::Eswitch(pf)) => {
            let answers = client.ask(DEVLINK, c::ESWITCH_GET, |to| device(to, pf)).map_err(text)?;
            Ok(answers.iter().map(eswitch).collect::<Vec<_>>().join("\n"))
        }
        Action::Query(Query::Ports(Some(of))) => {
            let ask = |to: &mut Builder| {
                device(to, of.device);
                to.u32(a::PORT_INDEX, of.index.0);
            };
            let answers = client.ask(DEVLINK, c::PORT_GET, ask).map_err(text)?;
            Ok(answers.iter().map(port).collect::<Vec<_>>().join("\n"))
        }
        Action::Query(Query::Ports(None)) => {
            let answers = client.dump(DEVLINK, c::PORT_GET, |_| {}).map_err(text)?;
            Ok(answers.iter().map(port).collect::<Vec<_>>().join("\n"))
        }
        other => panic!("`{words}` is nothing that a test does to a daemon: {other:?}"),
    }
}

fn device(to: &mut Builder, device: PciAddress) {
    to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, &device.to_string());
}

fn eswitch(answer: &Answered) -> String {
    let mode = find(&answer.attributes, a::ESWITCH_MODE).and_then(|mode| mode.u16());
    let encap = find(&answer.attributes, a::ESWITCH_ENCAP_MODE).and_then(|encap| encap.u8());
    let mode = if mode == Some(1) { "switchdev" } else { "legacy" };
    format!("mode {mode} encap-mode {}", if encap == Some(1) { "basic" } else { "none" })
}

fn port(answer: &Answered) -> String {
    let number = |kind: u16| find(&answer.attributes, kind)?.u32();
    let short = |kind: u16| find(&answer.attributes, kind)?.u16();
    let mut words = format!("{:?}", number(a::PORT_INDEX));
    if let Some(vf) = short(a::PORT_PCI_VF_NUMBER) {
        words += &format!(" vfnum {vf}");
    }
    if let Some(sf) = number(a::PORT_PCI_SF_NUMBER) {
        words += &format!(" sfnum {sf}");
    }
    let Some(of_function) = find(&answer.attributes, a::PORT_FUNCTION) else { return words };
    if let Some(address) = find(of_function.value, function::HW_ADDR) {
        words += " ";
        words += &address.value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    }
    if let Some(caps) = find(of_function.value, function::CAPS) {
        let roce = caps.value.first().is_some_and(|bits| bits & 1 != 0);
        words += if roce { " roce enable" } else { " roce disable" };
    }
    if let Some(state) = find(of_function.value, function::STATE).and_then(|state| state.u8()) {
        words += if state == 1 { " state active" } else { " state inactive" };
    }
    words
}
