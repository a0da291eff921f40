//! Which system calls are trapped: a classic BPF program for seccomp.
//!
//! A program that makes no netlink socket, loads no module and queries no driver and no file system by a descriptor should
//! run as without a filter.
//! Since Linux 5.11 the kernel knows which call numbers a filter allows whatever the arguments are, and does not run
//! the filter for those. So the order below matters only among the calls that are named in it; the frequent ones,
//! receiving and `ioctl`, are first.
//!
//! A call of another ABI than the machine's own (32-bit programs, x32) is let through: such a program sees the kernel
//! without the card.

use crate::sys::FilterOp;

/// The audit number (AUDIT_ARCH_*) of the machine's own ABI.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("a lab needs to know the ABI of its system calls: x86_64 or aarch64");

pub(crate) const AF_NETLINK: u32 = libc::AF_NETLINK as u32;
pub(crate) const SOL_NETLINK: u32 = libc::SOL_NETLINK as u32;
pub(crate) const SOL_SOCKET: u32 = libc::SOL_SOCKET as u32;
pub(crate) const SIOCETHTOOL: u32 = 0x8946;
/// Sets the MTU of a netdev.
pub(crate) const SIOCSIFMTU: u32 = 0x8922;
/// `sizeof(struct sockaddr_nl)`: no other common address has 12 bytes.
pub(crate) const ADDRESS_LEN: u32 = 12;
/// NETLINK_ROUTE, NETLINK_KOBJECT_UEVENT, NETLINK_GENERIC and NETLINK_RDMA.
const PROTOCOLS: [u32; 4] = [0, 15, 16, 20];
const SOCKET_OPTIONS: [u32; 3] = [libc::SO_TYPE as u32, libc::SO_PROTOCOL as u32, libc::SO_DOMAIN as u32];

/// The flags of the one `sendmsg` that is let through: the child's own, by which it sends the supervisor the descriptor
/// on which trapped calls are received. The child is under the filter then, and nobody receives its calls yet.
/// MSG_CMSG_CLOEXEC is for receiving, so no other program sends with just these flags; one that does is answered like a
/// process without the filter.
pub(crate) const UNTRAPPED_SEND: u32 = (libc::MSG_NOSIGNAL | libc::MSG_CMSG_CLOEXEC) as u32;
/// The lengths, in bytes, that a request may have: a message has a header of 16 bytes, and a netlink socket takes no
/// more than its buffer, 212,992 bytes by default.
const REQUEST: std::ops::Range<u32> = 16..212_992;
/// `sizeof` of `sockaddr_in`, `sockaddr_in6` and `sockaddr_ll`.
const OTHER_ADDRESS_LENS: [u32; 3] = [16, 28, 20];

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The offsets in `struct seccomp_data` of the call's number, of the ABI, and of the lower half of an argument.
const NUMBER: u32 = 0;
const ABI: u32 = 4;
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

/// A condition on a call's arguments for it to be trapped.
enum Test<'a> {
    /// An argument is one of these.
    OneOf(u32, &'a [u32]),
    /// An argument is at least this.
    AtLeast(u32, u32),
    /// An argument is less than this.
    Below(u32, u32),
    /// An argument is anything but this.
    Not(u32, u32),
}

fn op(code: u16, jt: usize, jf: usize, k: u32) -> FilterOp {
    FilterOp { code, jt: jt as u8, jf: jf as u8, k }
}

/// Appends instructions: a call of this number is trapped if every test holds, and let through otherwise.
fn trap(program: &mut Vec<FilterOp>, number: i64, tests: &[Test<'_>]) {
    let mut block = Vec::new();
    // Each test continues behind itself or jumps to the end, which lets the call through.
    let lens = tests.iter().map(|test| match test {
        Test::OneOf(_, values) => 1 + values.len(),
        Test::AtLeast(..) | Test::Below(..) | Test::Not(..) => 2,
    });
    let mut left: usize = lens.sum::<usize>() + 1;
    for test in tests {
        let (Test::OneOf(n, _) | Test::AtLeast(n, _) | Test::Below(n, _) | Test::Not(n, _)) = test;
        block.push(op(LOAD, 0, 0, argument(*n)));
        left -= 1;
        match test {
            Test::OneOf(_, values) => {
                for (i, value) in values.iter().enumerate() {
                    let after = values.len() - 1 - i;
                    left -= 1;
                    block.push(op(EQUAL, after, if after == 0 { left } else { 0 }, *value));
                }
            }
            Test::AtLeast(_, value) => {
                left -= 1;
                block.push(op(AT_LEAST, 0, left, *value));
            }
            Test::Below(_, value) => {
                left -= 1;
                block.push(op(AT_LEAST, left, 0, *value));
            }
            Test::Not(_, value) => {
                left -= 1;
                block.push(op(EQUAL, left, 0, *value));
            }
        }
    }
    block.push(op(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    block.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(op(EQUAL, 0, block.len(), number as u32));
    program.append(&mut block);
}

/// The filter. Receiving is trapped for descriptors from `base` on.
pub(crate) fn program(base: u32) -> Vec<FilterOp> {
    let mut program = vec![
        op(LOAD, 0, 0, ABI),
        op(EQUAL, 1, 0, ARCH),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(LOAD, 0, 0, NUMBER),
    ];
    let high = [Test::AtLeast(0, base)];
    trap(&mut program, libc::SYS_recvmsg, &high);
    trap(&mut program, libc::SYS_recvfrom, &high);
    trap(&mut program, libc::SYS_ioctl, &[Test::OneOf(1, &[SIOCETHTOOL, SIOCSIFMTU])]);
    trap(&mut program, libc::SYS_recvmmsg, &high);
    trap(&mut program, libc::SYS_write, &[Test::AtLeast(2, REQUEST.start), Test::Below(2, REQUEST.end)]);
    trap(&mut program, libc::SYS_writev, &[]);
    sending_to(&mut program);
    trap(&mut program, libc::SYS_sendmsg, &[Test::Not(2, UNTRAPPED_SEND)]);
    trap(&mut program, libc::SYS_sendmmsg, &[]);
    trap(&mut program, libc::SYS_socket, &[Test::OneOf(0, &[AF_NETLINK]), Test::OneOf(2, &PROTOCOLS)]);
    trap(&mut program, libc::SYS_setsockopt, &[Test::OneOf(1, &[SOL_NETLINK])]);
    querying_options(&mut program);
    // Whatever the length: systemd binds to an address of 16 bytes, of which netlink reads 12.
    trap(&mut program, libc::SYS_bind, &[]);
    trap(&mut program, libc::SYS_connect, &[Test::OneOf(2, &[ADDRESS_LEN])]);
    trap(&mut program, libc::SYS_getsockname, &[]);
    trap(&mut program, libc::SYS_fstatfs, &[]);
    trap(&mut program, libc::SYS_statfs, &[]);
    trap(&mut program, libc::SYS_mount, &[]);
    trap(&mut program, libc::SYS_umount2, &[]);
    trap(&mut program, libc::SYS_move_mount, &[]);
    trap(&mut program, libc::SYS_init_module, &[]);
    trap(&mut program, libc::SYS_finit_module, &[]);
    trap(&mut program, libc::SYS_delete_module, &[]);
    program.push(op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

/// Traps `sendto`: without an address, if the data has the length of a request; with an address, unless that has the
/// length of an address of IPv4, IPv6 or packet sockets, to which programs often send.
fn sending_to(program: &mut Vec<FilterOp>) {
    let mut block = vec![
        op(LOAD, 0, 0, argument(5)),
        op(EQUAL, 3, 0, 0),
        op(EQUAL, 6, 0, OTHER_ADDRESS_LENS[0]),
        op(EQUAL, 5, 0, OTHER_ADDRESS_LENS[1]),
        op(EQUAL, 4, 3, OTHER_ADDRESS_LENS[2]),
        op(LOAD, 0, 0, argument(2)),
        op(AT_LEAST, 0, 2, REQUEST.start),
        op(AT_LEAST, 1, 0, REQUEST.end),
        op(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    program.push(op(EQUAL, 0, block.len(), libc::SYS_sendto as u32));
    program.append(&mut block);
}

/// Traps `getsockopt`: every option of SOL_NETLINK, and [`SOCKET_OPTIONS`] of SOL_SOCKET.
fn querying_options(program: &mut Vec<FilterOp>) {
    let mut block = vec![
        op(LOAD, 0, 0, argument(1)),
        op(EQUAL, 5, 0, SOL_NETLINK),
        op(EQUAL, 0, 5, SOL_SOCKET),
        op(LOAD, 0, 0, argument(2)),
        op(EQUAL, 2, 0, SOCKET_OPTIONS[0]),
        op(EQUAL, 1, 0, SOCKET_OPTIONS[1]),
        op(EQUAL, 0, 1, SOCKET_OPTIONS[2]),
        op(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    program.push(op(EQUAL, 0, block.len(), libc::SYS_getsockopt as u32));
    program.append(&mut block);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter on one call. Returns whether it is trapped.
    fn is_trapped(arch: u32, number: i64, args: [u32; 6]) -> bool {
        let program = program(768);
        let (mut at, mut a) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            match op.code {
                LOAD if op.k == NUMBER => a = number as u32,
                LOAD if op.k == ABI => a = arch,
                LOAD => a = args[((op.k - 16) / 8) as usize],
                EQUAL => at += usize::from(if a == op.k { op.jt } else { op.jf }),
                AT_LEAST => at += usize::from(if a >= op.k { op.jt } else { op.jf }),
                RETURN => return op.k == libc::SECCOMP_RET_USER_NOTIF,
                code => panic!("{code}"),
            }
        }
    }

    #[test]
    fn only_calls_that_may_concern_a_card_are_trapped() {
        for (number, args, expected) in [
            (libc::SYS_read, [0, 0, 0], false),
            (libc::SYS_recvmsg, [767, 0, 0], false),
            (libc::SYS_recvmsg, [768, 0, 0], true),
            (libc::SYS_recvfrom, [3, 0, 0], false),
            (libc::SYS_socket, [16, 3, 0], true),
            (libc::SYS_socket, [16, 3, 16], true),
            (libc::SYS_socket, [16, 3, 20], true),
            (libc::SYS_socket, [16, 3, 15], true),
            (libc::SYS_socket, [16, 3, 9], false),
            (libc::SYS_socket, [2, 1, 0], false),
            (libc::SYS_ioctl, [3, 0x8946, 0], true),
            (libc::SYS_ioctl, [3, 0x8922, 0], true),
            (libc::SYS_ioctl, [3, 0x8921, 0], false),
            (libc::SYS_ioctl, [3, 0x5401, 0], false),
            (libc::SYS_setsockopt, [3, 270, 1], true),
            (libc::SYS_setsockopt, [3, 1, 1], false),
            (libc::SYS_getsockopt, [3, 270, 1], true),
            (libc::SYS_getsockopt, [3, 1, 39], true),
            (libc::SYS_getsockopt, [3, 1, 38], true),
            (libc::SYS_getsockopt, [3, 1, 3], true),
            (libc::SYS_getsockopt, [3, 1, 4], false),
            (libc::SYS_getsockopt, [3, 6, 3], false),
            (libc::SYS_bind, [3, 0, 12], true),
            (libc::SYS_bind, [3, 0, 16], true),
            (libc::SYS_connect, [3, 0, 110], false),
            (libc::SYS_getsockname, [3, 0, 0], true),
            (libc::SYS_delete_module, [0, 0, 0], true),
            (libc::SYS_fstatfs, [3, 0, 0], true),
            (libc::SYS_statfs, [0, 0, 0], true),
            (libc::SYS_mount, [0, 0, 0], true),
            (libc::SYS_move_mount, [3, 0, 0], true),
            (libc::SYS_umount2, [0, 0, 0], true),
            (libc::SYS_write, [1, 0, 15], false),
            (libc::SYS_write, [1, 0, 16], true),
            (libc::SYS_write, [1, 0, 212_991], true),
            (libc::SYS_write, [1, 0, 212_992], false),
            (libc::SYS_writev, [1, 0, 1], true),
            (libc::SYS_sendmsg, [3, 0, 0], true),
            (libc::SYS_sendmsg, [3, 0, UNTRAPPED_SEND], false),
            (libc::SYS_sendmmsg, [3, 0, 1], true),
        ] {
            let [a, b, c] = args;
            let args = [a, b, c, 0, 0, 0];
            assert_eq!(is_trapped(ARCH, number, args), expected, "{number} {args:?}");
            assert!(!is_trapped(0x4000_0003, number, args), "another ABI: {number}");
        }
        assert!(program(768).len() < 192, "{}", program(768).len());
    }

    #[test]
    fn sending_is_trapped_if_it_may_be_a_request() {
        for (length, address_length, expected) in [
            (15, 0, false),
            (16, 0, true),
            (212_991, 0, true),
            (212_992, 0, false),
            (20, 12, true),
            (1 << 20, 12, true),
            (20, 16, false),
            (20, 28, false),
            (20, 20, false),
            (20, 110, true),
        ] {
            let is_trapped = is_trapped(ARCH, libc::SYS_sendto, [3, 0, length, 0, 0, address_length]);
            assert_eq!(is_trapped, expected, "{length} to an address of {address_length}");
        }
    }
}
