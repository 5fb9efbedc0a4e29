//! Limits on reading and writing: which devices they are set for, and how the kernel wants them written.
//!
//! Version 2 holds back all that is read and written. Version 1 holds back reads, and writes that a program makes to the device itself
//! (`O_DIRECT`, `O_SYNC`); what the kernel writes later from its memory is nobody's there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::cgroup::Group;
use super::spec::IoLimits;

/// What is limited: the file of version 1, and the key in the one of version 2.
const KINDS: [(&str, &str); 4] = [
    ("blkio.throttle.read_bps_device", "rbps"),
    ("blkio.throttle.write_bps_device", "wbps"),
    ("blkio.throttle.read_iops_device", "riops"),
    ("blkio.throttle.write_iops_device", "wiops"),
];
/// The file of version 2.
const MAX: &str = "io.max";

fn values(limits: &IoLimits) -> [Option<u64>; 4] {
    [limits.read, limits.write, limits.read_ops, limits.write_ops]
}

/// The limits of a group; what cannot be read does not limit.
pub fn read(group: &Group) -> IoLimits {
    let files = if group.unified { vec![MAX] } else { KINDS.map(|(file, _)| file).to_vec() };
    let text = |file| fs::read_to_string(group.path.join(file)).unwrap_or_default();
    in_force(&files.into_iter().map(|file| (file, text(file))).collect::<Vec<_>>())
}

/// What is written to set the limits for these devices, with the files that it is written to.
pub fn lines(limits: &IoLimits, unified: bool, devices: &[String]) -> Vec<(&'static str, String)> {
    let values = values(limits);
    let of_device = |device: &String| -> Vec<(&'static str, String)> {
        if unified {
            let text = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), |value| value.to_string());
            let pairs = KINDS.iter().zip(values).map(|((_, key), value)| format!(" {key}={}", text(value)));
            return vec![(MAX, format!("{device}{}", pairs.collect::<String>()))];
        }
        // Of version 1, nought is no limit.
        KINDS
            .iter()
            .zip(values)
            .map(|((file, _), value)| (*file, format!("{device} {}", value.unwrap_or(0))))
            .collect()
    };
    devices.iter().flat_map(of_device).collect()
}

/// The limits that these files hold: where they differ by device, the loosest.
fn in_force(files: &[(&str, String)]) -> IoLimits {
    let of_kind = |kind: usize| -> Option<u64> {
        let (first, key) = KINDS[kind];
        let of_line = |file: &str, line: &str| -> Option<u64> {
            let mut fields = line.split_whitespace().skip(1);
            match file {
                MAX => fields.find_map(|field| field.strip_prefix(key)?.strip_prefix('='))?.parse().ok(),
                _ if file == first => fields.next()?.parse().ok(),
                _ => None,
            }
        };
        files.iter().flat_map(|(file, text)| text.lines().filter_map(|line| of_line(file, line))).max()
    };
    IoLimits { read: of_kind(0), write: of_kind(1), read_ops: of_kind(2), write_ops: of_kind(3) }
}

/// The device that holds `dir`, in the kernel's numbers: a whole disk, whatever part of it.
///
/// # Errors
/// The text says why there is none.
pub fn device(dir: &Path) -> Result<String, String> {
    let dir = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let found = || -> io::Result<String> {
        let number = number(fs::metadata(dir)?.dev());
        let known = Path::new("/sys/dev/block").join(&number);
        if known.join("partition").exists() {
            // The directory of a part is in that of the whole.
            let whole = fs::canonicalize(&known)?.join("../dev");
            return Ok(fs::read_to_string(whole)?.trim().to_owned());
        }
        fs::metadata(&known).map(|_| number)
    };
    found().map_err(|_| {
        format!("the file system of {} is on no one device that the kernel can hold back", dir.display())
    })
}

/// The number of a device as the kernel writes it.
pub fn number(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_back_as_they_were_written() {
        let limits = IoLimits { read: Some(1 << 20), write_ops: Some(500), ..IoLimits::default() };
        let devices = ["254:0".to_owned(), "7:3".to_owned()];
        for unified in [true, false] {
            let mut texts = std::collections::BTreeMap::<&str, String>::new();
            for (file, line) in lines(&limits, unified, &devices) {
                // The kernel shows nothing of version 1 that is not limited.
                if unified || !line.ends_with(" 0") {
                    *texts.entry(file).or_default() += &format!("{line}\n");
                }
            }
            let texts: Vec<_> = texts.into_iter().collect();
            assert_eq!(in_force(&texts), limits, "{texts:?}");
        }
        let text = &lines(&limits, true, &devices)[0].1;
        assert_eq!(text, "254:0 rbps=1048576 wbps=max riops=max wiops=500");
        assert_eq!(in_force(&[]), IoLimits::default());
    }

    #[test]
    fn what_no_device_holds_is_told() {
        assert!(device(Path::new("/proc/self")).is_err_and(|why| why.contains("/proc/self")));
    }
}
