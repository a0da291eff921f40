//! Labs that are kept: started, entered, listed and stopped.
//!
//! Each script runs in namespaces of its own, that of processes among them. It takes root and `/dev/fuse`.

mod lab;

use std::process::{Command, Output};

use lab::{Folder, line_is};

/// Functions of the scripts. `said COMMAND…` prints what a command prints, and its exit status. `until_true COMMAND` waits
/// until a command, one word, succeeds.
const FUNCTIONS: &str = r#"
mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
said() { if "$@" 2>&1; then echo status 0; else echo "status $?"; fi; }
until_true() {
    for _ in $(seq 1200); do if eval "$1" > /run/until 2>&1; then return; fi; sleep 0.05; done
    echo "not within a minute: $1"; cat /run/until; return 1
}
"#;

fn run(folder: &Folder, script: &str) -> Output {
    let namespaces =
        ["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-ec", &format!("{FUNCTIONS}{script}")]);
    command.env("FOLDER", &folder.0).env("ESW", env!("CARGO_BIN_EXE_esw")).env("SHELL", "/bin/sh");
    command.env_remove("RUNTIME_DIRECTORY").env_remove("ESW_NODE").output().unwrap()
}

/// Runs a script, and checks the lines that it prints.
fn prints(folder: &Folder, script: &str, expected: &[&str]) {
    let output = run(folder, script);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    for (expected, found) in expected.iter().zip(printed.lines()) {
        assert!(line_is(expected, found), "{found}\nexpected:\n{expected}\n{all}");
    }
    assert_eq!(printed.lines().count(), expected.len(), "{all}");
    assert!(output.status.success(), "{all}");
}

#[test]
fn programs_enter_a_lab_that_stays_until_it_is_stopped() {
    if lab::skipped(&["devlink", "setsid"]) {
        return;
    }
    let folder = Folder::make("labs");
    let script = r#"
    $ESW up --daemon --detach >&2
    $ESW lab list
    $ESW lab start demo
    # Given a server in it that `enter` has left in the background, as a daemon does that forks
    cat > $FOLDER/server <<'END'
    while read -r words < $FOLDER/asked; do sh -c "$words" > $FOLDER/new 2>&1; mv $FOLDER/new $FOLDER/told; done
END
    mkfifo $FOLDER/asked
    $ESW lab enter demo -- sh -c 'setsid sh $FOLDER/server > /dev/null 2>&1 < /dev/null & exit 3' || echo status $?
    # then it sees the card after that,
    echo 'echo $ESW_LAB; devlink dev; cat /sys/bus/pci/devices/0000:08:00.0/vendor' > $FOLDER/asked
    until_true 'test -e $FOLDER/told'; cat $FOLDER/told
    # the mounts of one program are seen by the next, and not outside,
    $ESW lab enter demo -- mount -t tmpfs inside /mnt
    $ESW lab enter demo -- grep -c '^inside ' /proc/mounts
    grep -c '^inside ' /proc/mounts || true
    # a lab of the name is not started again, and one that programs use is not stopped.
    said $ESW lab start demo
    said $ESW lab stop demo | sed "s|$FOLDER|FOLDER|"
    $ESW lab list | sed 's/up [0-9]* s/up T/; s/process [0-9]*/process N/'
    $ESW lab list --json | sed "s|$FOLDER|FOLDER|; s/[0-9][0-9]*/N/g"
    said $ESW lab enter demo -- $ESW lab stop demo --force
    # When it is stopped, nothing is left.
    pid=$($ESW lab list --json | grep -o '"pid":[0-9]*' | head -1 | cut -d: -f2)
    said $ESW lab stop demo --force
    test -e /proc/$pid/exe || echo the supervisor has ended
    find /run/eswitch/labs -type f -o -type s
    said $ESW lab enter demo -- true
    said $ESW lab stop demo
    $ESW down >&2
    "#;
    prints(
        &folder,
        script,
        &[
            "no lab runs; `esw lab start NAME` starts one (looked in /run/eswitch/labs)",
            "lab demo runs with 0000:08:00.0: process …; enter it with `esw lab enter demo`",
            "status 3",
            "demo",
            "pci/0000:08:00.0",
            "0x15b3",
            "1",
            "0",
            "esw: lab demo runs already: enter it with `esw lab enter demo`, or end it with `esw lab stop demo`",
            "status 2",
            "esw: lab demo has programs; end them, or give --force, which ends them:",
            "  process …: sh FOLDER/server",
            "status 1",
            "demo  0000:08:00.0, up T, process N, 1 program",
            "  process N: sh …/server",
            r#"{"name":"demo","pid":N,"uptime_seconds":N,"cards":["N:N:N.N"],"programs":[{"pid":N,"command":"sh FOLDER/server"}]}"#,
            "esw: lab demo: a program in the lab cannot stop it; stop it from outside",
            "status 1",
            "ended lab demo",
            "status 0",
            "the supervisor has ended",
            "esw: lab demo does not run: start it with `esw lab start demo`",
            "status 2",
            "esw: lab demo does not run: start it with `esw lab start demo`",
            "status 1",
        ],
    );
}

#[test]
fn a_lab_whose_supervisor_was_killed_is_started_again() {
    if lab::skipped(&["devlink", "setsid"]) {
        return;
    }
    let folder = Folder::make("labs-killed");
    let script = r#"
    $ESW up --daemon --detach >&2
    $ESW lab start demo >&2
    pid=$($ESW lab list --json | grep -o '"pid":[0-9]*' | cut -d: -f2)
    $ESW lab enter demo -- setsid sh -c 'sleep 1000' & entered=$!
    until_true '$ESW lab list | grep -q sleep'
    kill -9 $pid
    until_true '! test -e /proc/$pid/exe'
    said $ESW lab enter demo -- true
    $ESW lab list
    $ESW lab start demo >&2
    $ESW lab enter demo -- devlink dev
    # The programs of the old lab are none of the new one's.
    said $ESW lab stop demo
    # A front that is killed takes its program along, and not what that has left in the background.
    $ESW lab start demo >&2
    $ESW lab enter demo -- sh -c 'setsid sleep 2000 & exec sleep 3000' & front=$!
    until_true '$ESW lab list | grep -c "sleep [23]000" | grep -q 2'
    kill -9 $front
    until_true '$ESW lab list | grep -c "sleep [23]000" | grep -q 1'
    $ESW lab list | grep -o 'sleep.*'
    # One that ignores SIGTERM is killed. SIGTERM to a front reaches its program.
    $ESW lab enter demo -- sh -c 'trap "echo asked to end; exit 4" TERM; touch $FOLDER/ready; while :; do sleep 0.05; done' & front=$!
    until_true 'test -e $FOLDER/ready'; kill $front; wait $front || echo status $?
    $ESW lab enter demo -- sh -c 'trap "" TERM; touch $FOLDER/deaf; while :; do sleep 0.05; done' & front=$!
    until_true 'test -e $FOLDER/deaf'
    said $ESW lab stop demo --force --timeout 0
    wait $front || echo status $?
    $ESW down >&2
    "#;
    prints(
        &folder,
        script,
        &[
            "esw: lab demo does not run: start it with `esw lab start demo`; there are sockets of demo",
            "status 2",
            "no lab runs; `esw lab start NAME` starts one (looked in /run/eswitch/labs)",
            "pci/0000:08:00.0",
            "ended lab demo",
            "status 0",
            "sleep 2000",
            "asked to end",
            "status 4",
            "ended lab demo",
            "status 0",
            "status 137",
        ],
    );
}

#[test]
fn of_several_starts_at_once_one_succeeds_and_wrong_names_and_places_are_refused() {
    if lab::skipped(&["devlink"]) {
        return;
    }
    let folder = Folder::make("labs-at-once");
    let script = r#"
    said $ESW lab start demo
    find /run/eswitch/labs -type f -o -type s
    $ESW up --daemon --detach >&2
    for n in 1 2 3 4 5 6; do $ESW lab start demo > $FOLDER/$n 2>&1 & done; wait
    cat $FOLDER/? | grep -o 'demo runs with\|runs already' | sort | uniq -c | tr -s ' '
    said $ESW lab start ../x | head -1
    said $ESW lab start exec | head -1
    said $ESW lab enter demo -- $ESW lab start inner
    said $ESW lab enter demo -- $ESW lab enter demo -- true
    said $ESW lab enter demo -- /no/such/program
    said $ESW exec -- sh -c 'echo $ESW_LAB'
    # Two labs at once, each with programs of its own, and several in one.
    $ESW lab start other >&2
    for n in 1 2 3 4 5 6 7 8; do $ESW lab enter other -- sh -c 'devlink dev; exit 0' > $FOLDER/$n & done; wait
    cat $FOLDER/? | sort | uniq -c | tr -s ' '
    # A lab outlives the daemon, as that of `esw exec` does, and sees the next one.
    $ESW down >&2; $ESW up --daemon --detach >&2
    until_true '$ESW lab enter other -- devlink dev eswitch show pci/0000:08:00.0'
    $ESW lab stop demo; $ESW lab stop other; $ESW down >&2
    "#;
    prints(
        &folder,
        script,
        &[
            "esw: no card is up; …",
            "status 2",
            " 1 demo runs with",
            " 5 runs already",
            "error: invalid value '../x' for '<NAME>': a lab has a name of 1 to 32 letters, …",
            "error: invalid value 'exec' for '<NAME>': `exec` stands for the lab of `esw exec`, …",
            "esw: this is inside a lab already, …",
            "status 2",
            "esw: this is inside a lab already, …",
            "status 2",
            "esw: /no/such/program: No such file or directory…",
            "status 2",
            "exec",
            "status 0",
            " 8 pci/0000:08:00.0",
            "ended lab demo",
            "ended lab other",
        ],
    );
}

#[test]
fn a_lab_is_of_the_user_who_starts_it_and_works_without_root() {
    if lab::skipped(&["devlink", "setpriv", "setsid"]) {
        return;
    }
    let folder = Folder::make("labs-user");
    let script = r#"
    chmod 755 $FOLDER; cp $ESW /run/esw; chmod 755 /run/esw; chmod 666 /dev/fuse 2>/dev/null || true
    for user in 4001 4002; do mkdir -p /run/home$user; chown $user:$user /run/home$user; done
    as() {
        user=$1; shift; setpriv --reuid=$user --regid=$user --clear-groups \
            env XDG_RUNTIME_DIR=/run/home$user XDG_STATE_HOME=/run/home$user HOME=/run/home$user "$@"
    }
    for kind in memory linux; do
        as 4001 /run/esw up --daemon --detach --card $kind --fresh >&2
        as 4001 /run/esw lab start demo >&2
        as 4001 /run/esw lab enter demo -- sh -c 'devlink dev; id -u; setsid sleep 1000 > /dev/null 2>&1 & exit 0'
        as 4001 /run/esw lab list | grep -o 'sleep.*'
        # Another user may not even look, whatever the folder is called.
        said as 4002 env XDG_RUNTIME_DIR=/run/home4001 /run/esw lab list
        as 4001 /run/esw lab stop demo --force
        as 4001 /run/esw down >&2
    done
    # Of root's lab the same holds.
    $ESW up --daemon --detach >&2; $ESW lab start root >&2
    said as 4001 env RUNTIME_DIRECTORY=/run/eswitch /run/esw lab enter root -- true
    $ESW lab stop root; $ESW down >&2
    "#;
    let of_each = [
        "pci/0000:08:00.0",
        "0",
        "sleep 1000",
        "esw: looking for labs: /run/home4001/eswitch cannot be trusted …another user…",
        "status 2",
        "ended lab demo",
    ];
    let of_root = ["esw: lab root: the lab belongs to another user: permission denied", "status 2", "ended lab root"];
    prints(&folder, script, &[&of_each[..], &of_each, &of_root].concat());
}

/// What a shell prints that is typed to, without its control sequences.
fn typed(folder: &Folder, command: &str, home: &str) -> String {
    let script = format!(
        r#"
    mkdir $FOLDER/home; cd $FOLDER/home; export HOME=$FOLDER/home TERM=dumb; {home}
    $ESW up --daemon --detach >&2
    $ESW lab start demo >&2
    cat > $FOLDER/type.py <<'END'
import os, pty, re, select, signal, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-c", sys.argv[1]])
controls = r"\x1b(\[[0-9;?>=]*[a-zA-Z]|\][^\x07\x1b]*(\x07|\x1b\\)|[=>()][0B]?)|\r|\u23ce"
plain = lambda: re.sub(controls, "", text)
text, end, to_type = "", time.time() + 60, ["echo ans''wer $ESW_LAB\n", "exit\n"]
while time.time() < end:
    if select.select([fd], [], [], 1)[0]:
        try:
            read = os.read(fd, 4096)
        except OSError:
            break
        if not read:
            break
        if b"\x1b[c" in read or b"\x1b[0c" in read:
            os.write(fd, b"\x1b[?62c")
        text += read.decode(errors="replace")
    if to_type and plain().rstrip().endswith("MINE>"):
        if len(to_type) == 2 or "\nanswer demo" in plain():
            os.write(fd, to_type.pop(0).encode())
else:
    text += "nothing more within a minute"
    os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print(plain())
END
    python3 $FOLDER/type.py '{command}'
    ls -A /tmp | grep esw-zsh || true
    $ESW lab stop demo --force >&2; $ESW down >&2
    "#
    );
    let output = run(folder, &script);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed
}

#[test]
fn a_shell_in_a_lab_says_so_in_the_prompt_that_the_user_has() {
    let cases = [
        ("bash", "echo 'PS1=\"MINE> \"' > .bashrc"),
        ("bash", "echo 'PROMPT_COMMAND=\"PS1=MINE\\>\\ \"' > .bashrc"),
        ("bash", "echo 'PROMPT_COMMAND=(:); PS1=\"MINE> \"' > .bashrc"),
        ("sh", ""),
        ("zsh", "echo 'PROMPT=\"MINE> \"; unsetopt zle' > .zshrc"),
        ("zsh", "mkdir own; echo 'PROMPT=\"MINE> \"; unsetopt zle' > own/.zshrc; echo ZDOTDIR=$HOME/own > .zshenv"),
        (
            "fish",
            "mkdir -p .config/fish .local/share/fish/generated_completions; echo 'function fish_prompt; echo \"MINE> \"; end' > .config/fish/config.fish",
        ),
    ];
    for (shell, home) in cases {
        if lab::skipped(&[shell, "python3"]) {
            continue;
        }
        let folder = Folder::make("labs-prompt");
        let printed = typed(&folder, &format!("PS1=\"MINE> \" SHELL=$(command -v {shell}) $ESW lab enter demo"), home);
        assert!(printed.contains("(lab demo) MINE>"), "{shell}, {home}: {printed}");
        assert!(!printed.contains("(lab demo) (lab demo)"), "{shell}, {home}: {printed}");
        assert!(printed.contains("\nanswer demo"), "{shell}, {home}: {printed}");
        assert!(!printed.contains("esw-zsh"), "{shell}, {home}: {printed}");
    }
}
