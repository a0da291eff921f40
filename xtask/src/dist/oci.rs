//! A container image, made without a container engine: an OCI image layout (version 1.0.0) in a tar archive.

use anyhow::Result;
use serde_json::{Value, json};

use super::digest::sha256;
use super::release::Release;
use super::tree::{Tree, gzip};

/// The folder of blobs, each of which has its digest as its name.
pub const BLOBS: &str = "blobs/sha256";

/// The name of the image's file.
pub fn file_name(release: &Release) -> String {
    format!("eswitch_{}_{}.oci.tar", release.version, release.machine.oci)
}

/// The image with these files as its only layer. It starts `esw`.
///
/// # Errors
/// A path is longer than tar's format allows.
pub fn image(release: &Release, files: &Tree) -> Result<Vec<u8>> {
    let mut layout = Tree::default();
    let layer = files.tar("", release.time)?;
    let diff_id = sha256(&layer);
    let layer = blob(&mut layout, "application/vnd.oci.image.layer.v1.tar+gzip", gzip(&layer)?)?;
    let config = json!({
        "created": release.timestamp(),
        "architecture": release.machine.oci,
        "os": "linux",
        "config": {
            "Entrypoint": ["esw"],
            "Cmd": ["--help"],
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
            "Labels": labels(release),
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created": release.timestamp(), "created_by": "cargo xtask dist" }],
    });
    let config = blob(&mut layout, "application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob(&mut layout, "application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest)?)?;
    manifest["platform"] = json!({ "architecture": release.machine.oci, "os": "linux" });
    // The first is read by skopeo and podman, the second by containerd and docker.
    let name = format!("localhost/eswitch:{}", release.version);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    layout.file("index.json", serde_json::to_vec(&index)?)?;
    layout.file("oci-layout", serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
    layout.tar("", release.time)
}

fn labels(release: &Release) -> Value {
    json!({
        "org.opencontainers.image.title": "eswitch",
        "org.opencontainers.image.version": release.version,
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    })
}

/// Adds a blob, and returns its descriptor.
fn blob(layout: &mut Tree, media_type: &str, bytes: Vec<u8>) -> Result<Value> {
    let digest = sha256(&bytes);
    let descriptor = json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() });
    layout.file(&format!("{BLOBS}/{digest}"), bytes)?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::check::image::{Image, read_files};
    use crate::dist::release::example;

    fn example_image() -> Vec<u8> {
        let mut files = Tree::default();
        files.program("usr/bin/esw", "binary").unwrap();
        image(&example(), &files).unwrap()
    }

    #[test]
    fn every_digest_is_that_of_its_blob() {
        let bytes = example_image();
        assert_eq!(bytes, example_image(), "two runs give the same bytes");
        let image = Image::read(&bytes).unwrap();
        assert_eq!(image.entrypoint, ["esw"]);
        assert_eq!(image.files["usr/bin/esw"], b"binary");
        assert_eq!(file_name(&example()), "eswitch_1.2.3-rc.1_amd64.oci.tar");
    }

    #[test]
    fn a_blob_that_is_not_what_its_digest_says_is_found() {
        let mut wrong = Tree::default();
        for (path, mut bytes) in read_files(&example_image()).unwrap() {
            if path.starts_with(BLOBS) && bytes.starts_with(b"{\"architecture\"") {
                bytes.push(b'\n');
            }
            wrong.file(&path, bytes).unwrap();
        }
        let error = Image::read(&wrong.tar("", 0).unwrap()).err().unwrap().to_string();
        assert!(error.contains("has another digest"), "{error}");
    }
}
