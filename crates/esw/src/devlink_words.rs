//! `esw dev`, `esw port`, `esw health`, `esw monitor`: devlink's own grammar and output, for machines without
//! iproute2.
//!
//! Words may be shortened, as devlink allows. What was asked for is sent to the card as devlink would send
//! it, and what comes back is printed as devlink would print it.

mod print;
mod words;

use anyhow::{Result, bail};
use devlink::numbers::{attribute as a, command as c, flavour, function, nla};
use devlink::{CONFIG_GROUP, ClientError, DEVLINK, ESWITCH, eswitch_family};
use netlink::{Attribute, Builder, Errno, strerror};

use crate::arguments::Words as Arguments;
use crate::output::{complain, line};
use crate::sockets::Found;
use crate::{FAILED, HELD};

use words::{Handle, Words};

/// What is asked for.
struct Request {
    command: u8,
    /// The instance or port that is meant; without, all are.
    handle: Option<Handle>,
    attributes: Builder,
    /// How its answer is printed.
    print: print::Printer,
}

/// Runs `esw OBJECT WORDS…`; its exit status.
///
/// # Errors
/// Words that mean nothing; or no card is up.
pub fn run(object: &str, arguments: &Arguments) -> Result<u8> {
    let mut words = Words::new(&arguments.words);
    let request = match object {
        "dev" => dev(&mut words)?,
        "port" => port(&mut words)?,
        _ => health(&mut words)?,
    };
    words.end()?;
    let mut cards = arguments.which.connect()?;
    let answers = match request.handle {
        None => ask_all(&mut cards, &request),
        Some(_) => ask_whose_it_is(&mut cards, &request),
    };
    match answers {
        Ok(answers) => {
            let mut printer = print::Output::default();
            answers.iter().for_each(|answer| (request.print)(&mut printer, answer));
            printer.lines().iter().for_each(|text| line(text));
            Ok(HELD)
        }
        Err(ClientError::Refused(refusal)) => {
            if let Some(message) = &refusal.message {
                let dot = if message.ends_with('.') { "" } else { "." };
                complain!("Error: {message}{dot}");
            }
            complain!("kernel answers: {}", strerror(refusal.errno));
            Ok(FAILED)
        }
        Err(error) => Err(error.into()),
    }
}

type Answers = Result<Vec<devlink::Answered>, ClientError>;

fn ask_all(cards: &mut [Found], request: &Request) -> Answers {
    let mut all = Vec::new();
    for card in cards {
        all.extend(card.client.dump(DEVLINK, request.command, |to| request.write(to))?);
    }
    Ok(all)
}

/// Asks the cards by turns: who has no such instance says so, and does nothing.
fn ask_whose_it_is(cards: &mut [Found], request: &Request) -> Answers {
    let mut last = Ok(Vec::new());
    for card in cards {
        last = card.client.ask(DEVLINK, request.command, |to| request.write(to));
        match &last {
            Err(ClientError::Refused(refusal)) if refusal.errno == Errno::NODEV => {}
            _ => break,
        }
    }
    last
}

impl Request {
    fn new(command: u8, handle: Option<Handle>, print: print::Printer) -> Self {
        Self { command, handle, attributes: Builder::default(), print }
    }

    /// Writes what is asked with.
    fn write(&self, to: &mut Builder) {
        if let Some(handle) = &self.handle {
            to.text(a::BUS_NAME, &handle.bus).text(a::DEV_NAME, &handle.device);
            if let Some(index) = handle.port {
                to.u32(a::PORT_INDEX, index);
            }
        }
        to.append(&self.attributes);
    }
}

fn dev(words: &mut Words) -> Result<Request> {
    match words.choose(&["show", "eswitch", "param", "reload", "info"], Some("show"))? {
        "show" => Ok(Request::new(c::GET, words.device_or_all()?, print::device)),
        "info" => Ok(Request::new(c::INFO_GET, words.device_or_all()?, print::info)),
        "reload" => {
            let mut request = Request::new(c::RELOAD, Some(words.device()?), print::reload);
            if words.has("action") {
                words.choose(&["driver_reinit"], None)?;
                request.attributes.u8(a::RELOAD_ACTION, 1);
            }
            Ok(request)
        }
        "eswitch" => match words.choose(&["show", "set"], None)? {
            "show" => Ok(Request::new(c::ESWITCH_GET, Some(words.device()?), print::eswitch)),
            _ => eswitch_set(words),
        },
        _ => match words.choose(&["show", "set"], Some("show"))? {
            "show" => param_show(words),
            _ => param_set(words),
        },
    }
}

fn eswitch_set(words: &mut Words) -> Result<Request> {
    let mut request = Request::new(c::ESWITCH_SET, Some(words.device()?), print::nothing);
    while !words.is_empty() {
        match words.choose(&["mode", "inline-mode", "encap-mode"], None)? {
            "mode" => {
                let mode = words.number_of("eswitch mode", &["legacy", "switchdev"])?;
                request.attributes.u16(a::ESWITCH_MODE, mode as u16)
            }
            "inline-mode" => {
                let mode = words.number_of("eswitch inline mode", &["none", "link", "network", "transport"])?;
                request.attributes.u8(a::ESWITCH_INLINE_MODE, mode as u8)
            }
            _ => {
                let mode = words.number_of("eswitch encap mode", &["none", "basic"])?;
                request.attributes.u8(a::ESWITCH_ENCAP_MODE, mode as u8)
            }
        };
    }
    if request.attributes.is_empty() {
        bail!("Need to set at least one option: mode, inline-mode or encap-mode");
    }
    Ok(request)
}

fn param_show(words: &mut Words) -> Result<Request> {
    let mut request = Request::new(c::PARAM_GET, words.device_or_all()?, print::param);
    if request.handle.is_some() {
        words.expect("name")?;
        request.attributes.text(a::PARAM_NAME, &words.next("the name of a parameter")?);
    }
    Ok(request)
}

fn param_set(words: &mut Words) -> Result<Request> {
    let mut request = Request::new(c::PARAM_SET, Some(words.device()?), print::nothing);
    words.expect("name")?;
    request.attributes.text(a::PARAM_NAME, &words.next("the name of a parameter")?);
    words.expect("value")?;
    match words.next("a value")?.as_str() {
        "true" => request.attributes.u8(a::PARAM_TYPE, nla::FLAG).flag(a::PARAM_VALUE_DATA),
        "false" => request.attributes.u8(a::PARAM_TYPE, nla::FLAG),
        text => request.attributes.u8(a::PARAM_TYPE, nla::STRING).text(a::PARAM_VALUE_DATA, text),
    };
    words.expect("cmode")?;
    let cmode = words.number_of("configuration mode", &["runtime", "driverinit", "permanent"])?;
    request.attributes.u8(a::PARAM_VALUE_CMODE, cmode as u8);
    Ok(request)
}

fn port(words: &mut Words) -> Result<Request> {
    match words.choose(&["show", "add", "del", "function"], Some("show"))? {
        "show" => Ok(Request::new(c::PORT_GET, words.port_or_all()?, print::port)),
        "del" => Ok(Request::new(c::PORT_DEL, Some(words.port()?), print::nothing)),
        "add" => port_add(words),
        _ => match words.choose(&["set", "rate"], None)? {
            "set" => function_set(words),
            _ => rate(words),
        },
    }
}

fn port_add(words: &mut Words) -> Result<Request> {
    let mut request = Request::new(c::PORT_NEW, Some(words.device()?), print::port);
    while !words.is_empty() {
        match words.choose(&["flavour", "pfnum", "sfnum", "controller"], None)? {
            "flavour" => {
                words.choose(&["pcisf"], None)?;
                request.attributes.u16(a::PORT_FLAVOUR, flavour::PCI_SF)
            }
            "pfnum" => request.attributes.u16(a::PORT_PCI_PF_NUMBER, words.parse("a PF's number")?),
            "sfnum" => request.attributes.u32(a::PORT_PCI_SF_NUMBER, words.parse("an SF's number")?),
            _ => request.attributes.u32(a::PORT_CONTROLLER_NUMBER, words.parse("a controller's number")?),
        };
    }
    Ok(request)
}

fn function_set(words: &mut Words) -> Result<Request> {
    let mut request = Request::new(c::PORT_SET, Some(words.port()?), print::nothing);
    let mut inner = Builder::default();
    while !words.is_empty() {
        match words.choose(&["hw_addr", "state", "roce"], None)? {
            "hw_addr" => {
                let mac: eswitch::MacAddr = words.parse("a MAC address such as 02:00:00:00:00:01")?;
                inner.put(function::HW_ADDR, &mac.0)
            }
            "state" => {
                let state = words.number_of("state", &["inactive", "active"])?;
                inner.u8(function::STATE, state as u8)
            }
            _ => {
                let on = words.number_of("roce state", &["disable", "enable"])?;
                inner.bitfield(function::CAPS, on as u32 * function::CAP_ROCE, function::CAP_ROCE)
            }
        };
    }
    if inner.is_empty() {
        bail!("Need to set at least one option: hw_addr, state or roce");
    }
    request.attributes.nest(a::PORT_FUNCTION, |to| {
        to.append(&inner);
    });
    Ok(request)
}

fn rate(words: &mut Words) -> Result<Request> {
    let (command, print): (u8, print::Printer) = match words.choose(&["show", "set", "add", "del"], Some("show"))? {
        "show" => (c::RATE_GET, print::rate),
        "set" => (c::RATE_SET, print::nothing),
        "add" => (c::RATE_NEW, print::nothing),
        _ => (c::RATE_DEL, print::nothing),
    };
    if words.is_empty() && command == c::RATE_GET {
        return Ok(Request::new(command, None, print));
    }
    let (handle, node) = words.port_or_node()?;
    let mut request = Request::new(command, Some(handle), print);
    if let Some(node) = node {
        request.attributes.text(a::RATE_NODE_NAME, &node);
    }
    while !words.is_empty() && matches!(command, c::RATE_SET | c::RATE_NEW) {
        match words.choose(&["tx_share", "tx_max", "tx_priority", "tx_weight", "parent", "noparent"], None)? {
            "tx_share" => request.attributes.u64(a::RATE_TX_SHARE, words.rate()?),
            "tx_max" => request.attributes.u64(a::RATE_TX_MAX, words.rate()?),
            "tx_priority" => request.attributes.u32(a::RATE_TX_PRIORITY, words.parse("a number")?),
            "tx_weight" => request.attributes.u32(a::RATE_TX_WEIGHT, words.parse("a number")?),
            "parent" => request.attributes.text(a::RATE_PARENT_NODE_NAME, &words.next("the name of a rate node")?),
            _ => request.attributes.text(a::RATE_PARENT_NODE_NAME, ""),
        };
    }
    Ok(request)
}

fn health(words: &mut Words) -> Result<Request> {
    let (command, print): (u8, print::Printer) = match words.choose(&["show", "diagnose", "recover"], Some("show"))? {
        "show" => (c::HEALTH_GET, print::health),
        "diagnose" => (c::HEALTH_DIAGNOSE, print::message),
        _ => (c::HEALTH_RECOVER, print::nothing),
    };
    if words.is_empty() && command == c::HEALTH_GET {
        return Ok(Request::new(command, None, print));
    }
    let mut request = Request::new(command, Some(words.device()?), print);
    words.expect("reporter")?;
    request.attributes.text(a::HEALTH_REPORTER_NAME, &words.next("the name of a reporter")?);
    Ok(request)
}

/// Runs `esw monitor`: prints what happens until it is ended, or the card goes.
///
/// # Errors
/// No card is up, or the connection breaks.
pub fn monitor(arguments: &Arguments) -> Result<u8> {
    let mut words = Words::new(&arguments.words);
    let only = words.choose(&["all", "dev", "port"], Some("all"))?;
    words.end()?;
    let cards = arguments.which.connect()?;
    let (tell, told) = std::sync::mpsc::channel();
    for mut card in cards {
        card.client.ask(ESWITCH, eswitch_family::JOIN, |to| {
            to.u32(eswitch_family::GROUP, CONFIG_GROUP);
        })?;
        let tell = tell.clone();
        let follow = move || {
            while let Ok(messages) = card.client.receive_notification() {
                if tell.send(messages).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name(card.name).spawn(follow)?;
    }
    drop(tell);
    for message in told.iter().flatten() {
        let (object, verb, print): (&str, &str, print::Printer) = match message.command {
            c::NEW => ("dev", "new", print::device),
            c::DEL => ("dev", "del", print::device),
            c::PORT_NEW => ("port", "new", print::port),
            c::PORT_DEL => ("port", "del", print::port),
            _ => continue,
        };
        if only != "all" && only != object {
            continue;
        }
        let mut output = print::Output::default();
        print(&mut output, &message);
        let lines = output.lines();
        let first = lines.first().cloned().unwrap_or_default();
        line(&format!("[{object},{verb}] {first}"));
        lines.iter().skip(1).for_each(|text| line(text));
    }
    bail!("every card has gone");
}

/// The attributes of an answer.
fn attributes(answer: &devlink::Answered) -> impl Iterator<Item = Attribute<'_>> {
    netlink::attributes(&answer.attributes).flatten()
}
