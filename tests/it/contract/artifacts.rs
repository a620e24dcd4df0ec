//! What the artifact store promises, in memory and in a folder.

use bytes::Bytes;
use darkroom::dispatch::artifacts::{ArtifactStore, Error, Stored};
use darkroom::domain::{Artifact, ImageFormat, JobId};

use ImageFormat::{Jpeg, Png, Webp};

/// SHA-256 of `abc`, FIPS 180-2 appendix B.1.
const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn both() -> (tempfile::TempDir, [ArtifactStore; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let stores = [ArtifactStore::memory(), ArtifactStore::filesystem(&folder.path().join("a/b")).unwrap()];
    (folder, stores)
}

#[tokio::test]
async fn what_is_put_is_got() {
    let (_folder, stores) = both();
    for store in stores {
        let job = JobId::generate();
        assert_eq!(store.get(job, 0, Png).await.unwrap(), None);
        let stored = store.put(job, 0, Png, Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(stored, Stored { size_bytes: 3, sha256: SHA256_OF_ABC.to_owned() });
        store.put(job, 1, Webp, Bytes::new()).await.unwrap();
        assert_eq!(store.get(job, 0, Png).await.unwrap().as_deref(), Some(&b"abc"[..]));
        assert_eq!(store.get(job, 1, Webp).await.unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(store.get(job, 0, Jpeg).await.unwrap(), None);
        assert_eq!(store.get(JobId::generate(), 0, Png).await.unwrap(), None);
    }
}

#[tokio::test]
async fn the_first_put_wins_and_the_second_is_told_so() {
    let (_folder, stores) = both();
    for store in stores {
        let job = JobId::generate();
        let first = store.put(job, 0, Png, Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(store.put(job, 0, Png, Bytes::from_static(b"abc")).await.unwrap(), first);
        assert_eq!(store.put(job, 0, Png, Bytes::from_static(b"other")).await.unwrap(), first);
        assert_eq!(store.get(job, 0, Png).await.unwrap().as_deref(), Some(&b"abc"[..]));
    }
}

/// A picture of a job, as its row would tell it.
fn told(index: u32, bytes: &'static [u8], sha256: &str) -> Artifact {
    let (seed, size_bytes, sha256) = (7, bytes.len() as u64, sha256.to_owned());
    Artifact { index, seed, width: 8, height: 8, format: Png, size_bytes, sha256 }
}

#[tokio::test]
async fn copies_are_there_when_what_they_were_copied_from_is_gone() {
    let (_folder, stores) = both();
    for store in stores {
        let (from, to) = (JobId::generate(), JobId::generate());
        store.put(from, 0, Png, Bytes::from_static(b"abc")).await.unwrap();
        let images = [told(0, b"abc", SHA256_OF_ABC)];
        assert!(store.copy(from, to, &images).await.unwrap());
        assert!(store.copy(from, to, &images).await.unwrap(), "a copy may be tried again");
        store.remove(from).await.unwrap();
        assert_eq!(store.get(to, 0, Png).await.unwrap().as_deref(), Some(&b"abc"[..]));
        assert!(!store.copy(from, JobId::generate(), &images).await.unwrap(), "they are gone");
    }
}

#[tokio::test]
async fn what_is_not_what_it_should_be_is_not_copied() {
    let (_folder, stores) = both();
    for store in stores {
        let (from, to, other) = (JobId::generate(), JobId::generate(), JobId::generate());
        store.put(from, 0, Png, Bytes::from_static(b"abd")).await.unwrap();
        assert!(!store.copy(from, to, &[told(0, b"abc", SHA256_OF_ABC)]).await.unwrap(), "it was damaged");
        assert_eq!(store.get(to, 0, Png).await.unwrap(), None);
        store.put(other, 0, Png, Bytes::from_static(b"abc")).await.unwrap();
        store.put(to, 0, Png, Bytes::from_static(b"else")).await.unwrap();
        assert!(!store.copy(other, to, &[told(0, b"abc", SHA256_OF_ABC)]).await.unwrap(), "another lies there");
        assert_eq!(store.get(to, 0, Png).await.unwrap().as_deref(), Some(&b"else"[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_puts_at_once_all_are_told_the_same() {
    let (_folder, stores) = both();
    for store in stores {
        let job = JobId::generate();
        let puts = (0..8_u8).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move { store.put(job, 0, Png, vec![writer; 100_000].into()).await.unwrap() })
        });
        let told: Vec<Stored> = futures::future::join_all(puts).await.into_iter().map(Result::unwrap).collect();
        assert!(told.windows(2).all(|pair| pair[0] == pair[1]));
        let bytes = store.get(job, 0, Png).await.unwrap().unwrap();
        assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == bytes[0]));
    }
}

#[tokio::test]
async fn a_removed_job_has_no_pictures_and_its_neighbour_keeps_its_own() {
    let (_folder, stores) = both();
    for store in stores {
        let (job, neighbour) = (JobId::generate(), JobId::generate());
        for index in 0..3 {
            store.put(job, index, Jpeg, Bytes::from_static(b"abc")).await.unwrap();
        }
        store.put(neighbour, 0, Jpeg, Bytes::from_static(b"abc")).await.unwrap();
        store.remove(job).await.unwrap();
        store.remove(job).await.unwrap();
        for index in 0..3 {
            assert_eq!(store.get(job, index, Jpeg).await.unwrap(), None);
        }
        assert!(store.get(neighbour, 0, Jpeg).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn the_last_state_of_a_parked_job_is_got_within_bounds_and_leaves_with_what_was_drawn() {
    let (_folder, stores) = both();
    for store in stores {
        let [job, other] = [JobId::generate(), JobId::generate()];
        assert_eq!(store.get_parked(job, 10).await.unwrap(), None);
        store.remove_parked(job).await.unwrap();
        for state in [&b"longer"[..], b"last"] {
            store.put_parked(job, Bytes::from_static(state)).await.unwrap();
            store.put_parked(other, Bytes::from_static(state)).await.unwrap();
        }
        assert_eq!(store.get_parked(job, 4).await.unwrap().as_deref(), Some(&b"last"[..]));
        let error = store.get_parked(job, 3).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { size_bytes: 4, most: 3 }), "{error}");
        store.put(job, 0, Png, Bytes::from_static(b"abc")).await.unwrap();
        store.remove_parked(job).await.unwrap();
        assert_eq!(store.get_parked(job, 4).await.unwrap(), None);
        assert!(store.get(job, 0, Png).await.unwrap().is_some(), "its pictures stay");
        store.remove_drawn(other).await.unwrap();
        assert_eq!(store.get_parked(other, 4).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_folder_keeps_pictures_and_no_empty_folders() {
    let folder = tempfile::tempdir().unwrap();
    let job = JobId::generate();
    let store = ArtifactStore::filesystem(folder.path()).unwrap();
    store.put(job, 0, Jpeg, Bytes::from_static(b"abc")).await.unwrap();
    let path = folder.path().join(format!("jobs/{job}/0.jpg"));
    assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    let again = ArtifactStore::filesystem(folder.path()).unwrap();
    assert!(again.get(job, 0, Jpeg).await.unwrap().is_some());
    again.remove(job).await.unwrap();
    assert!(!path.parent().unwrap().exists() && folder.path().exists());
}

#[tokio::test]
async fn a_folder_that_cannot_be_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let Err(error) = ArtifactStore::filesystem(&file.path().join("inside")) else { panic!("a file has no inside") };
    assert!(matches!(&error, Error::Folder { path, .. } if path.starts_with(file.path())));
    assert!(error.to_string().contains(&file.path().display().to_string()));
}
