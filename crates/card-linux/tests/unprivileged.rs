//! A card without root. A program of its own, because a process that has threads, as every test has,
//! cannot change its user namespace.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::Arc;

use card_linux::{LinuxCard, Place, PlaceError, cannot_offload};
use eswitch::datapath::port;
use eswitch::vf::{VfSetting, VfVlan};
use eswitch::{CardConfig, Engine, Errno, FlowChange, FlowDone, FlowError, Mode, PfIndex, Vport};
use flow::{Action, Ct, Match, Protocol, Rule};
use lockdep::{Domain, Locked, OnReport, Threads, Unlocked};

const INSIDE: &str = "CARD_LINUX_TEST_INSIDE";
const NOBODY: &str = "65534";
const NAME: &str = "without_root_the_card_lives_in_namespaces_of_its_own";

fn main() {
    if std::env::args().any(|arg| arg == "--list") {
        println!("{NAME}: test");
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        return story();
    }
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let status = if root { as_nobody() } else { again(&std::env::current_exe().unwrap()).status() };
    match status.map(|status| status.code()) {
        Ok(Some(0)) => println!("test {NAME} ... ok"),
        Ok(Some(SKIPPED)) | Err(_) if std::env::var("CI").as_deref() != Ok("true") => {
            eprintln!("{NAME} skipped: user namespaces, or setpriv to become nobody");
        }
        other => panic!("{NAME}: {other:?}"),
    }
}

const SKIPPED: i32 = 77;

fn again(program: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    command.env(INSIDE, "1");
    command
}

/// Runs a copy of this program: the user nobody may not be allowed to read cargo's folders.
fn as_nobody() -> std::io::Result<std::process::ExitStatus> {
    let dir = std::env::temp_dir().join(format!("card-linux-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))?;
    let copy = dir.join("unprivileged");
    let status = std::fs::copy(std::env::current_exe()?, &copy).and_then(|_| {
        let mut command = again("setpriv".as_ref());
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs"]);
        command.arg(&copy).current_dir("/").status()
    });
    std::fs::remove_dir_all(&dir)?;
    status
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "`{command}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn story() {
    let place = match Place::prepare() {
        Ok(place) => place,
        Err(error @ PlaceError::NoUserNamespace { .. }) => {
            eprintln!("{error}");
            std::process::exit(SKIPPED);
        }
        Err(error) => panic!("{error}"),
    };
    assert!(place.is_private());
    let config = CardConfig { vfs: 3, ..CardConfig::default() };
    let domain = Domain::checked(OnReport::Panic);
    let card = Arc::new(LinuxCard::new(&place, config.clone(), &domain).unwrap_or_else(|e| panic!("{e}")));
    let threads = Arc::new(Threads(Arc::clone(&domain)));
    lockdep::enter(&domain, "story", |cx| {
        let engine = Engine::start(cx, config, card, threads).unwrap();
        let pf = engine.addresses()[0];
        let netns = "for n in 0 1; do ip netns add n$n && ip link set enp8s0f0v$n netns n$n &&
            ip -n n$n addr add 10.9.0.1$n/24 dev enp8s0f0v$n && ip -n n$n link set enp8s0f0v$n up || exit 1; done";
        sh(netns);
        sh("ls /sys/class/net | grep -q enp8s0f0np0");
        engine.set_mode(cx, pf, Mode::Switchdev).unwrap();
        sh("ip link show enp8s0f0npf0vf0 && ip -n esw-0000:08:00.0 link show r0v0");
        sh("ip link set enp8s0f0npf0vf0 up");
        for _ in 0..200 {
            if sh("ip -n n0 link show enp8s0f0v0").contains("LOWER_UP") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(sh("ip -n n0 link show enp8s0f0v0").contains("LOWER_UP"));
        rules(cx, &engine);
        engine.set_mode(cx, pf, Mode::Legacy).unwrap();
        assert!(!filters().contains("flower"), "{}", filters());
        sh("! ip link show enp8s0f0npf0vf0 2>&1");
        // What limits rates and checks addresses works here, too; what pushes tags does not, and is refused.
        let mut set = |setting| engine.set_vf(cx, pf, 0, setting);
        set(VfSetting::Rate { min: None, max: Some(20) }).unwrap();
        let classes = sh("tc -n esw-0000:08:00.0 class show dev shaper0");
        assert!(classes.contains("class htb 1:1 root") && classes.contains("ceil 20Mbit"), "{classes}");
        let filters = sh("tc -n esw-0000:08:00.0 filter show dev shaper0");
        assert!(filters.contains("flowid 1:1") && filters.contains("input dev p0v0"), "{filters}");
        set(VfSetting::Spoofchk(true)).unwrap();
        let vlan = set(VfSetting::Vlan(VfVlan { id: 5, ..VfVlan::default() })).unwrap_err();
        assert_eq!(vlan.errno(), Errno::EOPNOTSUPP, "{vlan}");
        engine.set_mode(cx, pf, Mode::Switchdev).unwrap();
        let filters = sh("tc -n esw-0000:08:00.0 filter show dev shaper0");
        assert!(filters.contains("flowid 1:1") && filters.contains("input dev r0v0"), "{filters}");
        engine.set_mode(cx, pf, Mode::Legacy).unwrap();
        engine.set_vf(cx, pf, 0, VfSetting::Rate { min: None, max: Some(0) }).unwrap();
        assert_eq!(
            sh("tc -n esw-0000:08:00.0 class show dev shaper0; tc -n esw-0000:08:00.0 filter show dev shaper0"),
            ""
        );
        engine.shutdown(cx);
    });
    assert_eq!(sh("ip -o link").lines().count(), 1, "the loopback");
}

/// The filters at the card's end of VF 0.
fn filters() -> String {
    sh("tc -n esw-0000:08:00.0 filter show dev p0v0 ingress")
}

/// Rules are carried out by the kernel's classifier, or refused as nothing can carry them out. One that the classifier cannot
/// carry out is refused by name, and the others stand.
fn rules(cx: &mut Locked<'_, Unlocked>, engine: &Engine) {
    let of_vf = |n| port(PfIndex(0), Vport::Vf(n));
    let rule = |priority, actions: Vec<Action>| {
        let rule = Rule::new(of_vf(0), Match::new(), actions).with_priority(priority, Protocol::All);
        FlowChange::Add { pf: PfIndex(0), rule: Box::new(rule) }
    };
    let track = vec![Action::Ct(Ct::default()), Action::Redirect(of_vf(1))];
    let send = || vec![Action::Redirect(of_vf(1))];
    let before = filters();
    let outcomes = engine.change_flows(cx, vec![rule(1, send()), rule(2, track), rule(3, send())]);
    let text = |outcome: &Result<FlowDone, FlowError>| outcome.as_ref().map(drop).map_err(ToString::to_string);
    let texts: Vec<Result<(), String>> = outcomes.iter().map(text).collect();
    if let Some(why) = cannot_offload() {
        assert!(why.contains("eBPF") && why.contains("cls_flower"), "{why}");
        let refused = Err(format!("no flows can be offloaded: {why}"));
        assert_eq!(texts, vec![refused; 3]);
        assert_eq!(filters(), before);
        return;
    }
    assert_eq!(texts, [Ok(()), Err("this kernel's classifier has no ct".to_owned()), Ok(())]);
    let after = filters();
    for wanted in ["pref 1 flower chain 1", "pref 3 flower chain 1", "pref 65535 flower chain 1", "action goto chain 1"]
    {
        assert!(after.contains(wanted), "{wanted}: {after}");
    }
    assert!(!after.contains("pref 2 flower"), "{after}");
    let flush =
        FlowChange::Flush { pf: PfIndex(0), block: flow::Block::Port(of_vf(0)), chain: None, priority: Some(1) };
    assert!(engine.change_flows(cx, vec![flush])[0].is_ok());
    assert!(!filters().contains("pref 1 flower chain 1"), "{}", filters());
}
