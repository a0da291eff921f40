//! Answers of a card, printed as devlink prints them.

use control::devlink::{
    CONFIGURATION_MODES, DevlinkVerb, ENCAP_MODES, ESWITCH_MODES, FUNCTION_STATES, INLINE_MODES, PORT_FLAVOURS,
    PORT_TYPES,
};
use devlink::Answered;
use devlink::numbers::{attribute as a, function, nla};
use netlink::Attribute;

use crate::printable::printable;

/// Prints one message of an answer.
pub type Printer = fn(&mut Output, &Answered);

/// The printer of the answers to a verb.
pub fn printer(verb: DevlinkVerb) -> Printer {
    match verb {
        DevlinkVerb::DevShow => device,
        DevlinkVerb::DevInfo => info,
        DevlinkVerb::DevReload => reload,
        DevlinkVerb::EswitchShow => eswitch,
        DevlinkVerb::ParamShow => param,
        DevlinkVerb::PortShow | DevlinkVerb::PortAdd => port,
        DevlinkVerb::RateShow => rate,
        DevlinkVerb::HealthShow => health,
        DevlinkVerb::HealthDiagnose => message,
        _ => nothing,
    }
}

/// Lines of output. devlink prints the handle of an instance once, above all of its lines that follow each other.
#[derive(Debug, Default)]
pub struct Output {
    lines: Vec<String>,
    /// The handle that was printed last.
    handle: String,
}

impl Output {
    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Adds a line. It can contain names that other programs have chosen, so control characters are escaped.
    fn line(&mut self, text: impl AsRef<str>) {
        self.lines.push(printable(text.as_ref()).into_owned());
    }

    /// Prints the handle of an instance above its lines, unless the lines before are the same instance's.
    fn heading(&mut self, handle: String) {
        if self.handle != handle {
            self.line(format!("{handle}:"));
            self.handle = handle;
        }
    }
}

/// The attributes of a message, or those nested in one of its attributes.
struct Fields<'a>(Vec<Attribute<'a>>);

impl<'a> Fields<'a> {
    fn of(answer: &'a Answered) -> Self {
        Self(netlink::attributes(&answer.attributes).flatten().collect())
    }

    fn find(&self, kind: u16) -> Option<&Attribute<'a>> {
        self.0.iter().find(|attribute| attribute.kind == kind)
    }

    fn all(&self, kind: u16) -> impl Iterator<Item = Self> {
        let found = self.0.iter().filter(move |attribute| attribute.kind == kind);
        found.map(|attribute| Self(attribute.nested().flatten().collect()))
    }

    fn nested(&self, kind: u16) -> Option<Self> {
        self.all(kind).next()
    }

    fn text(&self, kind: u16) -> Option<&'a str> {
        self.find(kind)?.text()
    }

    /// A number of 8, 16, 32 or 64 bits.
    fn number(&self, kind: u16) -> Option<u64> {
        let attribute = self.find(kind)?;
        let small = attribute.u8().map(u64::from).or(attribute.u16().map(u64::from));
        small.or(attribute.u32().map(u64::from)).or(attribute.u64())
    }

    fn device(&self) -> String {
        let text = |kind| self.text(kind).unwrap_or_default();
        format!("{}/{}", text(a::BUS_NAME), text(a::DEV_NAME))
    }
}

fn named(names: &[&'static str], number: Option<u64>) -> &'static str {
    number.and_then(|number| names.get(number as usize)).copied().unwrap_or("unknown")
}

fn nothing(_: &mut Output, _: &Answered) {}

pub fn device(to: &mut Output, answer: &Answered) {
    to.line(Fields::of(answer).device());
}

fn eswitch(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    let mode = named(&ESWITCH_MODES, fields.number(a::ESWITCH_MODE));
    let inline = named(&INLINE_MODES, fields.number(a::ESWITCH_INLINE_MODE));
    let encap = named(&ENCAP_MODES, fields.number(a::ESWITCH_ENCAP_MODE));
    to.line(format!("{}: mode {mode} inline-mode {inline} encap-mode {encap}", fields.device()));
}

fn reload(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    if fields.find(a::RELOAD_ACTIONS_PERFORMED).is_some() {
        to.line("reload_actions_performed:");
        to.line("    driver_reinit");
    }
}

fn info(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    to.heading(fields.device());
    if let Some(driver) = fields.text(a::INFO_DRIVER_NAME) {
        to.line(format!("  driver {driver}"));
    }
    to.line("  versions:");
    let kinds =
        [("fixed", a::INFO_VERSION_FIXED), ("running", a::INFO_VERSION_RUNNING), ("stored", a::INFO_VERSION_STORED)];
    for (name, kind) in kinds {
        let versions: Vec<Fields<'_>> = fields.all(kind).collect();
        if !versions.is_empty() {
            to.line(format!("      {name}:"));
        }
        for version in versions {
            let text = |kind| version.text(kind).unwrap_or_default();
            to.line(format!("        {} {}", text(a::INFO_VERSION_NAME), text(a::INFO_VERSION_VALUE)));
        }
    }
}

pub fn param(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    let Some(param) = fields.nested(a::PARAM) else { return };
    to.heading(fields.device());
    let kind = if param.find(a::PARAM_GENERIC).is_some() { "generic" } else { "driver-specific" };
    to.line(format!("  name {} type {kind}", param.text(a::PARAM_NAME).unwrap_or_default()));
    to.line("    values:");
    let kind = param.number(a::PARAM_TYPE).and_then(|kind| u8::try_from(kind).ok());
    let values = param.nested(a::PARAM_VALUES_LIST);
    for value in values.iter().flat_map(|list| list.all(a::PARAM_VALUE)) {
        let cmode = named(&CONFIGURATION_MODES, value.number(a::PARAM_VALUE_CMODE));
        let data = match kind {
            Some(nla::STRING) => value.text(a::PARAM_VALUE_DATA).unwrap_or_default().to_owned(),
            Some(nla::U32) => value.number(a::PARAM_VALUE_DATA).unwrap_or_default().to_string(),
            _ => value.find(a::PARAM_VALUE_DATA).is_some().to_string(),
        };
        to.line(format!("      cmode {cmode} value {data}"));
    }
}

pub fn port(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    let index = fields.number(a::PORT_INDEX).unwrap_or_default();
    let kind = named(&PORT_TYPES, fields.number(a::PORT_TYPE));
    let mut text = format!("{}/{index}: type {kind}", fields.device());
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!(" {name} {value}"));
        }
    };
    let number = |kind| fields.number(kind).map(|number| number.to_string());
    let boolean = |kind| fields.number(kind).map(|number| (number != 0).to_string());
    add("netdev", fields.text(a::PORT_NETDEV_NAME).map(str::to_owned));
    let flavour = fields.number(a::PORT_FLAVOUR).and_then(|number| PORT_FLAVOURS.get(usize::try_from(number).ok()?));
    add("flavour", flavour.map(|name| (*name).to_owned()));
    add("controller", number(a::PORT_CONTROLLER_NUMBER));
    add("pfnum", number(a::PORT_PCI_PF_NUMBER));
    add("vfnum", number(a::PORT_PCI_VF_NUMBER));
    add("sfnum", number(a::PORT_PCI_SF_NUMBER));
    add("external", boolean(a::PORT_EXTERNAL));
    add("port", number(a::PORT_NUMBER));
    add("splittable", boolean(a::PORT_SPLITTABLE));
    to.line(text);
    if let Some(function) = fields.nested(a::PORT_FUNCTION) {
        put_function(to, &function);
    }
}

fn put_function(to: &mut Output, fields: &Fields<'_>) {
    let mut parts = Vec::new();
    if let Some(mac) = fields.find(function::HW_ADDR) {
        let bytes: Vec<String> = mac.value.iter().map(|byte| format!("{byte:02x}")).collect();
        parts.push(format!("hw_addr {}", bytes.join(":")));
    }
    if let Some(state) = fields.number(function::STATE) {
        parts.push(format!("state {}", named(&FUNCTION_STATES, Some(state))));
    }
    if let Some(state) = fields.number(function::OPSTATE) {
        parts.push(format!("opstate {}", named(&["detached", "attached"], Some(state))));
    }
    if let Some((value, selector)) = fields.find(function::CAPS).and_then(Attribute::bitfield)
        && selector & function::CAP_ROCE != 0
    {
        let on = value & function::CAP_ROCE != 0;
        parts.push(format!("roce {}", if on { "enable" } else { "disable" }));
    }
    to.line("  function:");
    to.line(format!("    {}", parts.join(" ")));
}

fn rate(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    let part = match fields.text(a::RATE_NODE_NAME) {
        Some(name) => name.to_owned(),
        None => fields.number(a::PORT_INDEX).unwrap_or_default().to_string(),
    };
    let mut text =
        format!("{}/{part}: type {}", fields.device(), named(&["leaf", "node"], fields.number(a::RATE_TYPE)));
    for (name, kind) in [("tx_share", a::RATE_TX_SHARE), ("tx_max", a::RATE_TX_MAX)] {
        if let Some(rate @ 1..) = fields.number(kind) {
            text.push_str(&format!(" {name} {}", in_bits(rate)));
        }
    }
    for (name, kind) in [("tx_priority", a::RATE_TX_PRIORITY), ("tx_weight", a::RATE_TX_WEIGHT)] {
        if let Some(number @ 1..) = fields.number(kind) {
            text.push_str(&format!(" {name} {number}"));
        }
    }
    if let Some(parent) = fields.text(a::RATE_PARENT_NODE_NAME) {
        text.push_str(&format!(" parent {parent}"));
    }
    to.line(text);
}

/// A rate of so many bytes a second, as tc and devlink print it.
fn in_bits(rate: u64) -> String {
    let bits = rate.saturating_mul(8);
    let units = [(1_000_000_000, "Gbit"), (1_000_000, "Mbit"), (1_000, "Kbit")];
    let unit = units.iter().find(|(size, _)| bits >= *size && bits.is_multiple_of(*size));
    unit.map_or_else(|| format!("{bits}bit"), |(size, name)| format!("{}{name}", bits / size))
}

pub fn health(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    let Some(reporter) = fields.nested(a::HEALTH_REPORTER) else { return };
    to.heading(fields.device());
    to.line(format!("  reporter {}", reporter.text(a::HEALTH_REPORTER_NAME).unwrap_or_default()));
    let number = |kind| reporter.number(kind).unwrap_or_default();
    let state = named(&["healthy", "error"], Some(number(a::HEALTH_REPORTER_STATE)));
    to.line(format!(
        "    state {state} error {} recover {} grace_period {} auto_recover {}",
        number(a::HEALTH_REPORTER_ERR_COUNT),
        number(a::HEALTH_REPORTER_RECOVER_COUNT),
        number(a::HEALTH_REPORTER_GRACEFUL_PERIOD),
        number(a::HEALTH_REPORTER_AUTO_RECOVER) != 0
    ));
}

/// Prints a formatted message (`devlink_fmsg`): pairs of a name and a value, in objects and lists.
fn message(to: &mut Output, answer: &Answered) {
    let fields = Fields::of(answer);
    let Some(message) = fields.nested(a::FMSG) else { return };
    let (mut depth, mut name) = (0usize, None);
    for attribute in &message.0 {
        match attribute.kind {
            a::FMSG_OBJ_NEST_START | a::FMSG_ARR_NEST_START => {
                if let Some(name) = name.take() {
                    to.line(format!("{}{name}:", "  ".repeat(depth.saturating_sub(1))));
                }
                depth += 1;
            }
            a::FMSG_PAIR_NEST_START => depth += 1,
            a::FMSG_NEST_END => depth = depth.saturating_sub(1),
            a::FMSG_OBJ_NAME => name = attribute.text(),
            a::FMSG_OBJ_VALUE_DATA => {
                let value = attribute.text().unwrap_or_default();
                to.line(format!(
                    "{}{}: {value}",
                    "  ".repeat(depth.saturating_sub(2)),
                    name.take().unwrap_or_default()
                ));
            }
            _ => {}
        }
    }
}
