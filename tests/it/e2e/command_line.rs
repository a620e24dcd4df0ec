//! What the subcommands do without a server, and that they agree with it.

use super::server::{Server, darkroom, generated, request, tiny_sd};

#[tokio::test]
async fn generate_draws_the_servers_bytes() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let response = server.post(&request(11, 5)).header("accept", "image/png").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-darkroom-seed"], "11");
    assert_eq!(response.bytes().await.unwrap(), generated(11, 5));
}

#[test]
fn several_pictures_are_numbered_and_seeded_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = darkroom();
    command.args(["generate", "--prompt", "a cat", "--width", "32", "--height", "32", "--sampler", "ddim", "--model"]);
    command.arg(tiny_sd()).args(["--seed", "11", "--steps", "5", "--num-images", "2", "-o"]);
    let output = command.arg(folder.path().join("out.png")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pixels = |bytes: Vec<u8>| darkroom::images::decode(&bytes, darkroom::domain::ImageFormat::Png).unwrap();
    for index in 0..2 {
        let path = folder.path().join(format!("out-{index}.png"));
        let drawn = pixels(std::fs::read(path).unwrap());
        assert_eq!(drawn.pixels(), pixels(generated(11 + index, 5)).pixels(), "picture {index} is seed 11 + {index}");
    }
}

#[test]
fn generate_names_every_flag_at_fault() {
    let mut command = darkroom();
    command.args(["generate", "--prompt", "a cat", "--width", "7", "--steps", "0", "--sampler", "eulr", "--model"]);
    let output = command.arg(tiny_sd()).args(["-o", "out.png"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for flag in ["--width 7", "--steps 0", "--sampler \"eulr\""] {
        assert!(told.contains(flag), "{flag} in {told}");
    }
}

#[test]
fn models_migrate_and_openapi_say_what_they_should() {
    let text = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let models = text(darkroom().args(["models", "--json", "--model"]).arg(tiny_sd()));
    let model: serde_json::Value = serde_json::from_str(models.trim()).unwrap();
    assert_eq!((&model["id"], &model["defaults"]["width"]), (&"tiny-sd".into(), &32.into()), "{model}");

    let data = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        text(darkroom().args(["migrate", "--data-dir"]).arg(data.path()));
    }
    assert!(data.path().join("darkroom.db").is_file());

    assert!(text(darkroom().arg("openapi")).starts_with("openapi:"));
}
