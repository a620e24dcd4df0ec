//! One file onto the disk: into a hidden file beside its place, from where that ends if it is there already, and checked. It
//! takes its name only by [`Fetched::keep`].

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use indicatif::ProgressBar;

use super::checksum::{Sum, Summing};
use super::remote::{Fault, Remote, RemoteFile, pause};

/// Brings files of one repository into one folder.
pub(super) struct Fetcher<'a> {
    pub(super) remote: &'a Remote,
    pub(super) folder: &'a Path,
    /// Contents by their checksum, of Hugging Face's own tools.
    pub(super) blobs: Option<PathBuf>,
    /// Attempts in a row that bring nothing.
    pub(super) attempts: u32,
    pub(super) bar: &'a ProgressBar,
}

/// A file that is whole and checked.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) sum: Sum,
    pub(super) path: PathBuf,
    /// Where its bytes are, when not at their place yet.
    part: Option<PathBuf>,
}

impl Fetched {
    pub(super) fn was_there(&self) -> bool {
        self.part.is_none()
    }

    /// Of a small file, wherever it is now.
    pub(super) fn text(&self) -> Result<String, String> {
        let path = self.part.as_ref().unwrap_or(&self.path);
        fs::read_to_string(path).map_err(|error| format!("{}: {error}", self.name))
    }

    /// Puts it to its place, over an earlier one.
    pub(super) fn keep(&mut self) -> Result<(), String> {
        match self.part.take() {
            Some(part) => fs::rename(&part, &self.path).map_err(|error| told(&self.path, &error)),
            None => Ok(()),
        }
    }
}

impl Fetcher<'_> {
    /// A file, whole and checked; what is there already is not fetched again.
    pub(super) async fn fetch(&self, file: &RemoteFile) -> Result<Fetched, String> {
        let RemoteFile { name, size: Some(size), sum: Some(sum) } = file else {
            return Err(format!("{}: the hub tells no size and checksum of it, so it could not be checked", file.name));
        };
        let path = place(self.folder, name)?;
        let fetched = |part| Fetched { name: name.clone(), size: *size, sum: sum.clone(), path: path.clone(), part };
        self.bar.set_message(name.clone());
        if fs::metadata(&path).is_ok_and(|there| there.len() == *size) && self.sum_of(&path, sum, *size)? == *sum {
            self.bar.inc(*size);
            return Ok(fetched(None));
        }
        let mut part = Part::open(&path, sum, *size)?;
        self.bar.inc(part.len);
        if part.len == 0 {
            self.copied(&mut part)?;
        }
        let mut failures = 0;
        while part.len < *size {
            let before = part.len;
            match self.receive(name, &mut part).await {
                Ok(()) => {}
                Err(Fault::Lasting(reason)) => return Err(reason),
                Err(Fault::Passing(reason)) => {
                    failures = if part.len > before { 1 } else { failures + 1 };
                    if failures >= self.attempts {
                        return Err(format!(
                            "`{name}`: {reason}. What came is kept; the same command goes on from there"
                        ));
                    }
                    self.bar.println(format!("{name}: {reason}; trying again"));
                    tokio::time::sleep(pause(failures)).await;
                }
            }
        }
        part.checked(name).map(|part| fetched(Some(part)))
    }

    /// One exchange: as many bytes as come. Files are written between awaits; nothing else runs meanwhile.
    async fn receive(&self, name: &str, part: &mut Part<'_>) -> Result<(), Fault> {
        let mut answer = self.remote.get(name, part.len).await?;
        if answer.start != part.len {
            self.bar.dec(part.len);
            part.restart().map_err(Fault::Lasting)?;
            if answer.start != 0 {
                return Err(Fault::Passing(format!("the answer begins at byte {}", answer.start)));
            }
        }
        while let Some(chunk) = self.remote.within(answer.body.next()).await? {
            let chunk = chunk.map_err(Fault::Passing)?;
            if part.len + chunk.len() as u64 > part.size {
                part.discard();
                return Err(Fault::Lasting(format!(
                    "`{name}`: more than its {} bytes come; nothing was kept",
                    part.size
                )));
            }
            part.append(&chunk).map_err(Fault::Lasting)?;
            self.bar.inc(chunk.len() as u64);
        }
        if part.len < part.size {
            return Err(Fault::Passing(format!("the answer ends after {} of {} bytes", part.len, part.size)));
        }
        Ok(())
    }

    /// The same contents in the cache of Hugging Face's own tools, where they are checked like all else.
    fn copied(&self, part: &mut Part<'_>) -> Result<(), String> {
        let cached = self.blobs.as_ref().map(|blobs| blobs.join(part.sum.hex()));
        let Some(cached) =
            cached.filter(|path| fs::metadata(path).is_ok_and(|blob| blob.is_file() && blob.len() == part.size))
        else {
            return Ok(());
        };
        if self.sum_of(&cached, part.sum, part.size)? != *part.sum {
            return Ok(());
        }
        let mut copied = 0;
        each_block(&cached, |block| {
            copied += block.len() as u64;
            part.append(block)
        })?;
        self.bar.inc(copied);
        Ok(())
    }

    fn sum_of(&self, path: &Path, like: &Sum, size: u64) -> Result<Sum, String> {
        let mut summing = Summing::like(like, size);
        each_block(path, |block| {
            summing.update(block);
            Ok(())
        })?;
        Ok(summing.finish())
    }
}

/// What has come of a file.
struct Part<'a> {
    path: PathBuf,
    file: File,
    summing: Summing,
    len: u64,
    sum: &'a Sum,
    size: u64,
}

impl<'a> Part<'a> {
    /// Beside the file's place, named for its contents too: what came of another version is not gone on with.
    fn open(place: &Path, sum: &'a Sum, size: u64) -> Result<Self, String> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let path = place.with_file_name(format!(".{name}.{}.part", &sum.hex()[..12]));
        no_link(&path)?;
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(|error| told(&path, &error))?;
        let mut part = Self { path, file, summing: Summing::like(sum, size), len: 0, sum, size };
        let path = part.path.clone();
        each_block(&path, |block| {
            part.summing.update(block);
            part.len += block.len() as u64;
            Ok(())
        })?;
        if part.len > size {
            part.restart()?;
        }
        Ok(part)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.file.write_all(bytes).map_err(|error| {
            let missing = self.size - self.len;
            format!("{} ({missing} bytes of it are still to come)", told(&self.path, &error))
        })?;
        self.summing.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), String> {
        self.file.set_len(0).map_err(|error| told(&self.path, &error))?;
        self.summing = Summing::like(self.sum, self.size);
        self.len = 0;
        Ok(())
    }

    fn discard(&self) {
        // What cannot be removed is overwritten next time.
        let _ = self.file.set_len(0);
        let _ = fs::remove_file(&self.path);
    }

    /// The whole file, on the disk and as the hub says it is; anything else is removed.
    fn checked(mut self, name: &str) -> Result<PathBuf, String> {
        self.file.sync_all().map_err(|error| told(&self.path, &error))?;
        let found = std::mem::replace(&mut self.summing, Summing::like(self.sum, self.size)).finish();
        if found == *self.sum {
            return Ok(self.path);
        }
        self.discard();
        Err(format!("`{name}` came as {found}, the hub says {}; it was removed", self.sum))
    }
}

/// Where a file of the folder goes. Its folders are made; none may be a link, which would lead elsewhere.
pub(super) fn place(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let mut path = folder.to_owned();
    let (folders, file) = name.rsplit_once('/').map_or((None, name), |(folders, file)| (Some(folders), file));
    for part in folders.into_iter().flat_map(|folders| folders.split('/')) {
        path.push(part);
        no_link(&path)?;
        fs::create_dir_all(&path).map_err(|error| told(&path, &error))?;
    }
    path.push(file);
    no_link(&path)?;
    Ok(path)
}

fn no_link(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => Err(format!("{} is a link; what it leads to is left alone", path.display())),
        _ => Ok(()),
    }
}

fn each_block(path: &Path, mut take: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| told(path, &error))?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(|error| told(path, &error))? {
            0 => return Ok(()),
            len => take(&block[..len])?,
        }
    }
}

/// What the system says of a file, and what to do about a full disk.
pub(super) fn told(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!(
            "the disk is full at {}; what came is kept: make room, and the same command goes on from there",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"twelve bytes";

    fn sum() -> Sum {
        let mut summing = Summing::like(&Sum::Sha256(String::new()), 12);
        summing.update(BYTES);
        summing.finish()
    }

    #[test]
    fn a_part_goes_on_where_it_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let (place, sum) = (folder.path().join("a.safetensors"), sum());
        Part::open(&place, &sum, 12).and_then(|mut part| part.append(&BYTES[..5])).expect("written");
        let mut part = Part::open(&place, &sum, 12).expect("again");
        assert_eq!(part.len, 5);
        part.append(&BYTES[5..]).expect("written");
        let path = part.checked("a.safetensors").expect("as it should be");
        assert_eq!(fs::read(path).expect("there"), BYTES);
        assert!(!place.exists());

        let mut other = Part::open(&place, &sum, 12).expect("whole");
        other.restart().expect("emptied");
        other.append(b"other bytes!").expect("written");
        let told = other.checked("a.safetensors").expect_err("other bytes");
        assert!(told.contains("SHA-256") && told.contains("removed"), "{told}");
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_with_what_is_missing() {
        let sum = sum();
        let file = OpenOptions::new().append(true).open("/dev/full").expect("a device that is always full");
        let path = PathBuf::from("models/.a.part");
        let mut part = Part { path, file, summing: Summing::like(&sum, 12), len: 0, sum: &sum, size: 12 };
        let told = part.append(BYTES).expect_err("full");
        assert!(
            told.contains("disk is full") && told.contains("12 bytes") && told.contains("models/.a.part"),
            "{told}"
        );
        assert_eq!(part.len, 0);
    }

    #[cfg(unix)]
    #[test]
    fn links_within_the_folder_are_not_followed() {
        let (folder, elsewhere) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("another"));
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("unet")).expect("linked");
        std::os::unix::fs::symlink(elsewhere.path().join("x"), folder.path().join("a.safetensors")).expect("linked");
        for name in ["unet/a.safetensors", "a.safetensors"] {
            assert!(place(folder.path(), name).expect_err(name).contains("is a link"), "{name}");
        }
        assert_eq!(place(folder.path(), "vae/b.json").expect("made"), folder.path().join("vae/b.json"));
        assert!(folder.path().join("vae").is_dir());
    }
}
