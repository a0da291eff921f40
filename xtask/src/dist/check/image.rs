//! The container image, read as an engine reads it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::json;

use crate::dist::digest::sha256;
use crate::dist::oci::{self, BLOBS};

use super::package::SCENARIO;
use super::{Printed, Scratch, Subject, output, unpack};

/// An image of one layer that has been read, and all of whose digests are right.
pub struct Image {
    /// The program that a container starts, and its first arguments.
    pub entrypoint: Vec<String>,
    /// The environment of that program.
    pub env: Vec<String>,
    /// The layer, a tar archive.
    pub layer: Vec<u8>,
    /// The files of the layer, by their path.
    pub files: BTreeMap<String, Vec<u8>>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: usize,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Configuration {
    config: Process,
    rootfs: RootFs,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Process {
    entrypoint: Vec<String>,
    env: Vec<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Image {
    /// Reads an OCI image layout in a tar archive.
    ///
    /// # Errors
    /// Something is missing, or is not what its digest says.
    pub fn read(archive: &[u8]) -> Result<Self> {
        let layout = read_files(archive)?;
        for (path, bytes) in &layout {
            if let Some(digest) = path.strip_prefix(BLOBS) {
                ensure!(digest.trim_start_matches('/') == sha256(bytes), "{path} has another digest");
            }
        }
        let file = |path: &str| layout.get(path).with_context(|| format!("the image has no {path}"));
        let blob = |descriptor: &Descriptor| {
            let digest = descriptor.digest.strip_prefix("sha256:").context("a digest that is no SHA-256")?;
            let bytes = file(&format!("{BLOBS}/{digest}"))?;
            ensure!(bytes.len() == descriptor.size, "{digest} has another size than its descriptor says");
            Ok(bytes)
        };
        ensure!(file("oci-layout")?.starts_with(b"{\"imageLayoutVersion\":\"1.0.0\""), "no layout of version 1.0.0");
        let Index { manifests } = serde_json::from_slice(file("index.json")?)?;
        let manifest: Manifest = serde_json::from_slice(blob(manifests.first().context("no manifest")?)?)?;
        let Configuration { config, rootfs } = serde_json::from_slice(blob(&manifest.config)?)?;
        let mut layer = Vec::new();
        GzDecoder::new(blob(manifest.layers.first().context("no layer")?)?.as_slice()).read_to_end(&mut layer)?;
        ensure!(rootfs.diff_ids == [format!("sha256:{}", sha256(&layer))], "the layer has another diff_id");
        Ok(Self { entrypoint: config.entrypoint, env: config.env, files: read_files(&layer)?, layer })
    }
}

/// The files in a tar archive, by their path.
///
/// # Errors
/// It is no tar archive.
pub fn read_files(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(String::from_utf8_lossy(&entry.path_bytes()).into_owned(), bytes);
        }
    }
    Ok(files)
}

fn read(subject: &Subject) -> Result<Image> {
    let path = subject.out.join(oci::file_name(&subject.ingredients.release));
    Image::read(&fs::read(&path).with_context(|| path.display().to_string())?)
}

pub(super) fn is_whole(subject: &Subject) -> Result<()> {
    let image = read(subject)?;
    let binary = image.files.get("usr/bin/esw").context("the layer has no /usr/bin/esw")?;
    ensure!(*binary == subject.ingredients.binary, "the layer has another /usr/bin/esw");
    ensure!(image.entrypoint == ["esw"], "the entrypoint is {:?}", image.entrypoint);
    Ok(())
}

/// Runs a scenario in a container whose root is the layer, started as the image's configuration says.
pub(super) fn runs_in_a_container(subject: &Subject) -> Result<()> {
    let image = read(subject)?;
    let scratch = Scratch::new("crun")?;
    unpack(&image.layer, &scratch.path().join("rootfs"))?;
    let arguments = image.entrypoint.iter().map(String::as_str).chain(["run", SCENARIO, "--json"]);
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
    let config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments.collect::<Vec<_>>(),
            "env": image.env,
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "linux": { "namespaces": namespaces },
    });
    fs::write(scratch.path().join("config.json"), serde_json::to_vec(&config)?)?;
    // crun refuses a machine with cgroups of both versions, whatever it is told to use of them.
    let script = "u=/sys/fs/cgroup/unified; [ ! -d $u ] || mount --bind $u /sys/fs/cgroup
        exec crun --root \"$PWD/state\" --cgroup-manager=disabled run \"eswitch-dist-$$\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-ec", script]).current_dir(scratch.path());
    let Printed { text, .. } = output(&mut unshare)?;
    ensure!(text.contains("late-ib"), "`esw run` printed:\n{text}");
    Ok(())
}
