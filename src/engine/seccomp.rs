//! The system call filter of every command: a classic BPF program, written here because it needs three different answers
//! and a bound on the newest call, which the filter compilers at hand do not offer in one program.
//!
//! Denied is what docker's default profile denies to a container without extra capabilities; calls newer than this list
//! look unimplemented, so that programs fall back.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, c_long, sock_filter,
};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// Low halves of the 64-bit arguments on a little-endian machine.
const ARGUMENT: [u32; 3] = [16, 24, 32];

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

/// Calls from here on are unknown to this list; the x32 calls lie there too.
const FIRST_UNKNOWN: u32 = 467;

/// Calls that the library does not name yet; their numbers are the same everywhere.
const SYS_STATMOUNT: c_long = 457;
const SYS_LISTMOUNT: c_long = 458;

/// Personalities that a process may ask for, as docker has them: Linux, a 32-bit Linux, each with the old version of `uname`, and the
/// question which one it has. Others switch protections off, such as random addresses.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// Answered with "operation not permitted".
const DENIED: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_set_mempolicy,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    SYS_LISTMOUNT,
    SYS_STATMOUNT,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
];

/// Answered with success and not done, where a single id is mapped: package managers insist on them, and there is only one owner.
const PRETENDED: &[c_long] = &[
    libc::SYS_capset,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// The bit of a file's mode that both kinds of device have, and pipes, sockets and files do not.
const DEVICE: u32 = 0o020_000;
const _: () = assert!(libc::S_IFCHR & libc::S_IFBLK & DEVICE != 0);
const _: () = assert!((libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFREG) & DEVICE == 0);

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(condition: u32, k: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | condition | BPF_K) as u16, jt: then, jf: otherwise, k }
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn answer(action: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, action)
}

fn errno(number: i32) -> u32 {
    SECCOMP_RET_ERRNO | number as u32
}

/// The program. With `fake_root`, changes of owner and identity seem to succeed.
pub fn program(fake_root: bool) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCH),
        jump(BPF_JEQ, AUDIT_ARCH, 1, 0),
        answer(SECCOMP_RET_KILL_PROCESS), // another calling convention has other numbers
        load(NUMBER),
        jump(BPF_JGE, FIRST_UNKNOWN, 0, 1),
        answer(errno(libc::ENOSYS)),
        // clone3 hides its flags behind a pointer; programs fall back to clone
        jump(BPF_JEQ, libc::SYS_clone3 as u32, 0, 1),
        answer(errno(libc::ENOSYS)),
    ];
    for call in DENIED {
        program.extend([jump(BPF_JEQ, *call as u32, 0, 1), answer(errno(libc::EPERM))]);
    }
    if fake_root {
        for call in PRETENDED {
            program.extend([jump(BPF_JEQ, *call as u32, 0, 1), answer(errno(0))]);
        }
    }
    let mut refuse_argument = |call: c_long, argument: u32, condition: u32, value: u32, with: i32| {
        program.extend([
            jump(BPF_JEQ, call as u32, 0, 4),
            load(argument),
            jump(condition, value, 0, 1),
            answer(errno(with)),
            load(NUMBER),
        ]);
    };
    refuse_argument(libc::SYS_clone, ARGUMENT[0], BPF_JSET, NEW_NAMESPACES, libc::EPERM);
    // not separated by network namespaces: a way to the hypervisor, and kernel code that nobody inside needs
    refuse_argument(libc::SYS_socket, ARGUMENT[0], BPF_JEQ, libc::AF_VSOCK as u32, libc::EAFNOSUPPORT);
    refuse_argument(libc::SYS_socket, ARGUMENT[0], BPF_JEQ, libc::AF_ALG as u32, libc::EAFNOSUPPORT);
    if fake_root {
        // only devices: a pipe is made, or whoever made it would look for it in vain
        refuse_argument(libc::SYS_mknodat, ARGUMENT[2], BPF_JSET, DEVICE, 0);
        #[cfg(target_arch = "x86_64")]
        refuse_argument(libc::SYS_mknod, ARGUMENT[1], BPF_JSET, DEVICE, 0);
    }
    // typing into a terminal that is shared with the caller
    refuse_argument(libc::SYS_ioctl, ARGUMENT[1], BPF_JEQ, libc::TIOCSTI as u32, libc::EPERM);
    refuse_argument(libc::SYS_ioctl, ARGUMENT[1], BPF_JEQ, libc::TIOCLINUX as u32, libc::EPERM);
    // the first process is the engine's, by the same user: without descriptors or memory it could not answer any more
    refuse_argument(libc::SYS_prlimit64, ARGUMENT[0], BPF_JEQ, 1, libc::EPERM);
    program.extend([
        jump(BPF_JEQ, libc::SYS_personality as u32, 0, PERSONALITIES.len() as u8 + 2),
        load(ARGUMENT[0]),
    ]);
    for (index, personality) in PERSONALITIES.iter().enumerate() {
        program.push(jump(BPF_JEQ, *personality, (PERSONALITIES.len() - index) as u8, 0));
    }
    program.push(answer(errno(libc::EPERM)));
    program.push(answer(SECCOMP_RET_ALLOW));
    program
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Runs the program the way the kernel does, for the instructions it uses.
    fn run(program: &[sock_filter], arch: u32, number: u32, arguments: impl AsRef<[u32]>) -> u32 {
        let argument = |index: usize| arguments.as_ref().get(index).copied().unwrap_or_default();
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let instruction = program[at];
            at += 1;
            let code = u32::from(instruction.code);
            if code == BPF_LD | BPF_W | BPF_ABS {
                a = match instruction.k {
                    NUMBER => number,
                    ARCH => arch,
                    16 => argument(0),
                    24 => argument(1),
                    32 => argument(2),
                    other => panic!("load of {other}"),
                };
            } else if code == BPF_RET | BPF_K {
                return instruction.k;
            } else {
                let holds = match code & !(BPF_JMP | BPF_K) {
                    BPF_JEQ => a == instruction.k,
                    BPF_JGE => a >= instruction.k,
                    BPF_JSET => a & instruction.k != 0,
                    other => panic!("jump {other}"),
                };
                at += usize::from(if holds { instruction.jt } else { instruction.jf });
            }
        }
    }

    fn verdict(fake_root: bool, call: c_long, arguments: impl AsRef<[u32]>) -> u32 {
        run(&program(fake_root), AUDIT_ARCH, call as u32, arguments)
    }

    #[test]
    fn dangerous_calls_are_denied_and_ordinary_ones_allowed() {
        for call in DENIED {
            assert_eq!(verdict(false, *call, [0, 0]), errno(libc::EPERM), "call {call}");
        }
        for call in [
            libc::SYS_read,
            libc::SYS_execve,
            libc::SYS_openat,
            libc::SYS_ptrace,
            libc::SYS_futex,
            libc::SYS_statx,
        ] {
            assert_eq!(verdict(false, call, [0, 0]), SECCOMP_RET_ALLOW, "call {call}");
        }
    }

    #[test]
    fn namespaces_cannot_be_made_by_any_road() {
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
            assert_eq!(
                verdict(false, libc::SYS_clone, [flag as u32 | libc::SIGCHLD as u32, 0]),
                errno(libc::EPERM)
            );
        }
        assert_eq!(verdict(false, libc::SYS_clone, [libc::SIGCHLD as u32, 0]), SECCOMP_RET_ALLOW);
        assert_eq!(verdict(false, libc::SYS_clone3, [0, 0]), errno(libc::ENOSYS));
    }

    #[test]
    fn arguments_select_and_later_rules_still_see_the_call() {
        assert_eq!(verdict(false, libc::SYS_socket, [libc::AF_INET as u32, 0]), SECCOMP_RET_ALLOW);
        assert_eq!(verdict(false, libc::SYS_socket, [libc::AF_VSOCK as u32, 0]), errno(libc::EAFNOSUPPORT));
        assert_eq!(verdict(false, libc::SYS_socket, [libc::AF_ALG as u32, 0]), errno(libc::EAFNOSUPPORT));
        assert_eq!(verdict(false, libc::SYS_ioctl, [0, libc::TIOCSTI as u32]), errno(libc::EPERM));
        assert_eq!(verdict(false, libc::SYS_ioctl, [0, libc::TIOCGWINSZ as u32]), SECCOMP_RET_ALLOW);
        assert_eq!(verdict(false, libc::SYS_prlimit64, [1, 7]), errno(libc::EPERM));
        assert_eq!(verdict(false, libc::SYS_prlimit64, [0, 7]), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn personalities_that_switch_protections_off_are_denied() {
        for personality in PERSONALITIES {
            assert_eq!(verdict(false, libc::SYS_personality, [personality, 0]), SECCOMP_RET_ALLOW);
        }
        for personality in [libc::ADDR_NO_RANDOMIZE as u32, libc::READ_IMPLIES_EXEC as u32, 0x8 | 0x40_0000] {
            assert_eq!(verdict(true, libc::SYS_personality, [personality, 0]), errno(libc::EPERM));
        }
    }

    #[test]
    fn fake_root_pretends_only_where_asked() {
        assert_eq!(verdict(true, libc::SYS_fchownat, [0, 0]), errno(0));
        assert_eq!(verdict(false, libc::SYS_fchownat, [0, 0]), SECCOMP_RET_ALLOW);
        let make = |kind: u32| verdict(true, libc::SYS_mknodat, [0, 0, kind | 0o600]);
        assert_eq!((make(libc::S_IFCHR), make(libc::S_IFBLK)), (errno(0), errno(0)));
        assert_eq!((make(libc::S_IFIFO), make(libc::S_IFSOCK)), (SECCOMP_RET_ALLOW, SECCOMP_RET_ALLOW));
    }

    #[test]
    fn other_conventions_and_unknown_calls_get_nothing() {
        assert_eq!(run(&program(false), AUDIT_ARCH ^ 1, 0, [0, 0]), SECCOMP_RET_KILL_PROCESS);
        assert_eq!(run(&program(false), AUDIT_ARCH, 0x4000_0000, [0, 0]), errno(libc::ENOSYS));
        assert_eq!(run(&program(false), AUDIT_ARCH, 600, [0, 0]), errno(libc::ENOSYS));
    }
}
