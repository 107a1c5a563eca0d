//! A disk that is soon full: a small tmpfs, which only root can mount.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own, gone at the end.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", at.to_str().unwrap()])
            .status();
        assert!(mounted.unwrap().success(), "a small tmpfs cannot be mounted: run as root");
        SmallDisk(at.to_owned())
    }

    /// Fills it but for so many bytes, and returns the file to remove.
    pub(crate) fn fill_up(&self, but_for: u64) -> PathBuf {
        let path = self.0.join("ballast");
        let mut ballast = std::fs::File::create(&path).unwrap();
        while ballast.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length - but_for).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
