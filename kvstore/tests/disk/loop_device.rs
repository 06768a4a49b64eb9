//! Real block devices and small file systems out of files: `losetup`, `mkfs.ext4`, `mount`. They need
//! root; where they are not to be had, a test says so in a line and ends.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A block device over a file. Taken away when dropped.
pub struct LoopDevice {
    pub path: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let out = Command::new(program).args(arguments).output().ok()?;
    if !out.status.success() {
        println!("skipped: {program} says {}", String::from_utf8_lossy(&out.stderr).trim());
        return None;
    }
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// A sparse file.
pub fn sparse(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

impl LoopDevice {
    pub fn over(file: &Path) -> Option<LoopDevice> {
        let path = run("losetup", &["--find", "--show", file.to_str()?])?;
        Some(LoopDevice { path: path.into() })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}

/// A mounted ext4 of its own. Unmounted when dropped.
pub struct Mount {
    pub at: PathBuf,
    pub device: LoopDevice,
    is_mounted: bool,
}

impl Mount {
    /// `bytes` of file system in a file of `folder`.
    pub fn ext4(folder: &Path, bytes: u64) -> Option<Mount> {
        let (file, at) = (folder.join("ext4"), folder.join("mounted"));
        sparse(&file, bytes);
        std::fs::create_dir(&at).unwrap();
        let device = LoopDevice::over(&file)?;
        let device_path = device.path.to_str()?.to_owned();
        run("mkfs.ext4", &["-q", "-m", "0", &device_path])?;
        run("mount", &[&device_path, at.to_str()?])?;
        Some(Mount { at, device, is_mounted: true })
    }

    /// Leaves the file system on its device.
    pub fn unmount(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            run("umount", &[self.at.to_str().unwrap()]);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}
