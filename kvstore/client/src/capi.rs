//! The C ABI over [`crate::Client`], as `include/cognitora_kv.h` declares it; what each call does and what its
//! caller must keep to is said there once.
//!
//! Owns handles, and drafts that were reserved but not put. Nothing unwinds into C: Rust ends the process
//! at an `extern "C"` function's edge, and what a caller may get wrong is looked at first.
// C hands over raw pointers, and finds functions by unmangled names.
#![expect(unsafe_code, reason = "the functions of a C ABI take raw pointers")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane::kv::{BATCH_MAX, Fault, Got, LIST_MAX, Name};

use crate::client::{Client, Options};
use crate::error::Error;
use crate::polling::Polling;
use crate::staging::{Draft, Written};

/// Most blocks in one call: 16 million tokens of a prompt in blocks of 16.
const COUNT_MAX: usize = 1 << 20;

thread_local! {
    /// Why the last call of this thread failed.
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// `cgn_kv`
pub struct Handle {
    client: Client,
    polling: Mutex<Option<Polling>>,
    /// By the address of their bytes.
    drafts: Mutex<BTreeMap<usize, Draft>>,
}

/// `cgn_kv_options`
#[repr(C)]
pub struct COptions {
    client: *const c_char,
    staging_bytes: u64,
    timeout_ms: u32,
    poll: u32,
}

/// `cgn_kv_block`
#[repr(C)]
pub struct CBlock {
    bytes: *const u8,
    len: u64,
    lease: u64,
    status: i32,
}

/// `cgn_kv_new`
#[repr(C)]
pub struct CNew {
    name: *const u8,
    parent: *const u8,
    bytes: *const u8,
    len: u64,
    label: *const u8,
    label_len: u64,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a call: its number, or its error's code with the text kept for the thread.
fn call(run: impl FnOnce() -> Result<i64, Error>) -> i64 {
    run().unwrap_or_else(|error| {
        let text = error.to_string().replace('\0', " ");
        LAST_ERROR.with(|last| last.replace(CString::new(text).unwrap_or_default()));
        i64::from(error.code())
    })
}

/// # Safety
/// `at` is null or points to `count` values that live and do not change for `'a`.
unsafe fn slice<'a, T>(at: *const T, count: usize) -> Result<&'a [T], Error> {
    if count == 0 {
        return Ok(&[]);
    }
    if at.is_null() || !at.is_aligned() || count > COUNT_MAX {
        return Err(Error::Invalid("a null pointer, or more than 1,048,576 blocks in one call"));
    }
    // SAFETY: not null, aligned, and the rest is this function's own contract.
    Ok(unsafe { std::slice::from_raw_parts(at, count) })
}

/// # Safety
/// As [`slice`], and nobody else reads or writes the values for `'a`.
unsafe fn slice_mut<'a, T>(at: *mut T, count: usize) -> Result<&'a mut [T], Error> {
    if count == 0 {
        return Ok(&mut []);
    }
    if at.is_null() || !at.is_aligned() || count > COUNT_MAX {
        return Err(Error::Invalid("a null pointer, or more than 1,048,576 blocks in one call"));
    }
    // SAFETY: not null, aligned, and the rest is this function's own contract.
    Ok(unsafe { std::slice::from_raw_parts_mut(at, count) })
}

/// # Safety
/// `at` is null or points to `len` bytes that live and do not change for `'a`.
unsafe fn bytes<'a>(at: *const u8, len: u64) -> Result<&'a [u8], Error> {
    match usize::try_from(len) {
        Ok(0) => Ok(&[]),
        Ok(len) if !at.is_null() && len <= isize::MAX as usize => {
            // SAFETY: not null, no longer than memory can be, and the rest is this function's contract.
            Ok(unsafe { std::slice::from_raw_parts(at, len) })
        }
        _ => Err(Error::Invalid("a null pointer to bytes")),
    }
}

/// # Safety
/// `at` is null or points to text that ends with a 0 byte and lives for `'a`.
unsafe fn text<'a>(at: *const c_char) -> Result<&'a str, Error> {
    if at.is_null() {
        return Err(Error::Invalid("a null pointer to text"));
    }
    // SAFETY: not null; the rest is this function's own contract.
    let text = unsafe { CStr::from_ptr(at) };
    text.to_str().map_err(|_| Error::Invalid("text that is not UTF-8"))
}

/// # Safety
/// `kv` is null or came from [`cgn_kv_connect`] and was not closed.
unsafe fn handle<'a>(kv: *const Handle) -> Result<&'a Handle, Error> {
    // SAFETY: null is told apart; else it is a live box of ours by this function's contract, which is
    // shared only: all of its parts are Sync.
    unsafe { kv.as_ref() }.ok_or(Error::Invalid("a null handle"))
}

/// # Safety
/// `at` is null or points to room for `count` numbers that nobody else touches for `'a`.
unsafe fn results_of<'a>(at: *mut i32, count: usize) -> Result<Option<&'a mut [i32]>, Error> {
    if at.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract.
    unsafe { slice_mut(at, count) }.map(Some)
}

/// # Safety
/// `names` is null or points to `count` names of 32 bytes.
unsafe fn names<'a>(names: *const u8, count: usize) -> Result<&'a [Name], Error> {
    // SAFETY: a name is 32 bytes without alignment; the rest is this function's own contract.
    unsafe { slice(names.cast::<Name>(), count) }
}

/// # Safety
/// As the header says of `cgn_kv_connect`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_connect(
    path: *const c_char,
    namespace: *const c_char,
    options: *const COptions,
    kv: *mut *mut Handle,
) -> i32 {
    let connect = || {
        if kv.is_null() {
            return Err(Error::Invalid("a null pointer for the handle"));
        }
        let (mut asked, mut polls) = (Options::default(), false);
        // SAFETY: the header asks for null or options that live during the call, with texts that end.
        if let Some(options) = unsafe { options.as_ref() } {
            if !options.client.is_null() {
                // SAFETY: as above.
                asked.client = unsafe { text(options.client) }?.to_owned();
            }
            asked.staging_bytes = options.staging_bytes;
            if options.timeout_ms > 0 {
                asked.timeout = Duration::from_millis(u64::from(options.timeout_ms));
            }
            polls = options.poll != 0;
        }
        // SAFETY: the header asks for texts that end.
        let (path, namespace) = unsafe { (text(path)?, text(namespace)?) };
        let path = Path::new(path);
        let (client, polling) = if polls {
            let client = Client::connect_to_poll(path, namespace, &asked)?;
            let polling = client.polling()?;
            (client, Some(polling))
        } else {
            (Client::connect(path, namespace, &asked)?, None)
        };
        let drafts = Mutex::default();
        let made = Box::new(Handle { client, polling: Mutex::new(polling), drafts });
        // SAFETY: not null, and the header asks for a place to write a pointer to.
        unsafe { kv.write(Box::into_raw(made)) };
        Ok(0)
    };
    call(connect) as i32
}

/// # Safety
/// As the header says of `cgn_kv_close`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_close(kv: *mut Handle) {
    if !kv.is_null() {
        // SAFETY: it came from `Box::into_raw` in connect, and the header says that it is closed once.
        drop(unsafe { Box::from_raw(kv) });
    }
}

/// # Safety
/// As the header says of `cgn_kv_lookup`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_lookup(
    kv: *const Handle,
    all: *const u8,
    count: usize,
    tiers: *mut u8,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle and `count` names.
        let (kv, names) = unsafe { (handle(kv)?, names(all, count)?) };
        let found = kv.client.lookup(names)?;
        if !tiers.is_null() {
            // SAFETY: the header asks for room for `count` bytes, and no more than that were found.
            let tiers = unsafe { slice_mut(tiers, count) }?;
            tiers.iter_mut().zip(&found).for_each(|(tier, found)| *tier = *found as u8);
        }
        Ok(found.len() as i64)
    })
}

/// # Safety
/// As the header says of `cgn_kv_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_get(
    kv: *const Handle,
    all: *const u8,
    count: usize,
    deadline_ms: u32,
    blocks: *mut CBlock,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle, `count` names and room for `count` blocks.
        let (kv, names, blocks) =
            unsafe { (handle(kv)?, names(all, count)?, slice_mut(blocks, count)?) };
        let mut leased = 0;
        for (names, blocks) in names.chunks(BATCH_MAX).zip(blocks.chunks_mut(BATCH_MAX)) {
            let grants = match kv.client.shared().grants(names, deadline_ms) {
                Ok(grants) => grants,
                Err(error) if leased == 0 => return Err(error),
                // What was leased before stays so; the rest says why there is no more.
                Err(error) => {
                    blocks.iter_mut().for_each(|block| *block = failed(error.code()));
                    continue;
                }
            };
            for (block, got) in blocks.iter_mut().zip(grants) {
                *block = kv.block(got);
                leased += i64::from(block.status == LEASED);
            }
        }
        Ok(leased)
    })
}

/// # Safety
/// As the header says of `cgn_kv_poll_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_poll_get(
    kv: *const Handle,
    name: *const u8,
    block: *mut CBlock,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle, a name and room for a block.
        let (kv, names, blocks) = unsafe { (handle(kv)?, names(name, 1)?, slice_mut(block, 1)?) };
        let mut polling = guard(&kv.polling);
        let polling = polling.as_mut().ok_or(NO_POLLING)?;
        blocks[0] = kv.block(polling.grant(&names[0])?);
        Ok(i64::from(blocks[0].status == LEASED))
    })
}

/// # Safety
/// As the header says of `cgn_kv_poll_release`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_poll_release(kv: *const Handle, lease: u64) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle.
        let kv = unsafe { handle(kv) }?;
        guard(&kv.polling).as_mut().ok_or(NO_POLLING)?.release_id(lease)?;
        Ok(0)
    })
}

/// # Safety
/// As the header says of `cgn_kv_release`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_release(
    kv: *const Handle,
    leases: *const u64,
    count: usize,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle and `count` leases.
        let (kv, leases) = unsafe { (handle(kv)?, slice(leases, count)?) };
        kv.client.shared().release(leases)?;
        Ok(0)
    })
}

/// # Safety
/// As the header says of `cgn_kv_reserve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_reserve(kv: *const Handle, len: u64, at: *mut *mut u8) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle and room for a pointer.
        let (kv, at) = unsafe { (handle(kv)?, slice_mut(at, 1)?) };
        let len = usize::try_from(len).map_err(|_| Error::Invalid("a block too long to be"))?;
        let mut draft = kv.client.reserve(len)?;
        at[0] = draft.as_mut_ptr();
        guard(&kv.drafts).insert(at[0] as usize, draft);
        Ok(0)
    })
}

/// # Safety
/// As the header says of `cgn_kv_unreserve`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_unreserve(kv: *const Handle, at: *const u8) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle. The pointer is looked up, not followed.
        let kv = unsafe { handle(kv) }?;
        let draft = guard(&kv.drafts).remove(&(at as usize));
        draft.map(|_| 0).ok_or(Error::Invalid("nothing was reserved there"))
    })
}

/// # Safety
/// As the header says of `cgn_kv_put`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_put(
    kv: *const Handle,
    blocks: *const CNew,
    count: usize,
    durable: i32,
    results: *mut i32,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle, `count` blocks, and room for `count` results or null.
        let (kv, blocks) = unsafe { (handle(kv)?, slice(blocks, count)?) };
        // SAFETY: as above.
        let results = unsafe { results_of(results, count) }?;
        // SAFETY: the header asks that each block's pointers are as its fields say.
        let done = unsafe { kv.put(blocks, durable != 0) }?;
        Ok(told(&done, results))
    })
}

/// # Safety
/// As the header says of `cgn_kv_pin`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_pin(
    kv: *const Handle,
    all: *const u8,
    count: usize,
    pinned: i32,
    results: *mut i32,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle, `count` names, and room for `count` results or null.
        let (kv, names) = unsafe { (handle(kv)?, names(all, count)?) };
        // SAFETY: as above.
        let results = unsafe { results_of(results, count) }?;
        Ok(told(&kv.client.pin(names, pinned != 0)?, results))
    })
}

/// # Safety
/// As the header says of `cgn_kv_remove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_remove(
    kv: *const Handle,
    all: *const u8,
    count: usize,
    results: *mut i32,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle, `count` names, and room for `count` results or null.
        let (kv, names) = unsafe { (handle(kv)?, names(all, count)?) };
        // SAFETY: as above.
        let results = unsafe { results_of(results, count) }?;
        Ok(told(&kv.client.remove(names)?, results))
    })
}

/// # Safety
/// As the header says of `cgn_kv_prefetch`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_prefetch(
    kv: *const Handle,
    all: *const u8,
    count: usize,
    deadline_ms: u32,
) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle and `count` names.
        let (kv, names) = unsafe { (handle(kv)?, names(all, count)?) };
        let deadline = Duration::from_millis(u64::from(deadline_ms));
        Ok(i64::try_from(kv.client.prefetch(names, deadline)?).unwrap_or(i64::MAX))
    })
}

/// # Safety
/// As the header says of `cgn_kv_clear`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_clear(kv: *const Handle) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle.
        let kv = unsafe { handle(kv) }?;
        let (mut forgotten, mut cursor) = (0, 0);
        loop {
            let (_, dropped, next) = kv.client.evict(false, cursor, LIST_MAX as u32)?;
            forgotten += dropped;
            // A cursor goes one way, so what is put meanwhile does not keep this from its end.
            if next <= cursor {
                return Ok(i64::try_from(forgotten).unwrap_or(i64::MAX));
            }
            cursor = next;
        }
    })
}

/// # Safety
/// As the header says of `cgn_kv_stats`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cgn_kv_stats(kv: *const Handle, out: *mut c_char, room: usize) -> i64 {
    call(|| {
        // SAFETY: the header asks for a live handle and room for `room` bytes.
        let (kv, out) = unsafe { (handle(kv)?, slice_mut(out.cast::<u8>(), room)?) };
        let lines = kv.client.stats()?;
        let text: String = lines.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        if let Some(end) = room.checked_sub(1) {
            let fits = text.len().min(end);
            out[..fits].copy_from_slice(&text.as_bytes()[..fits]);
            out[fits] = 0;
        }
        Ok(text.len() as i64)
    })
}

/// The text of this thread's last error; valid until its next failing call.
#[unsafe(no_mangle)]
pub extern "C" fn cgn_kv_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}

const LEASED: i32 = 1;
const NO_POLLING: Error = Error::Invalid("this handle was not connected with poll = 1");

fn failed(status: i32) -> CBlock {
    CBlock { bytes: std::ptr::null(), len: 0, lease: 0, status }
}

/// Writes results, and counts those that are true.
fn told(done: &[Result<bool, Fault>], results: Option<&mut [i32]>) -> i64 {
    for (result, done) in results.into_iter().flatten().zip(done) {
        *result = match done {
            Ok(is_done) => i32::from(*is_done),
            Err(fault) => -i32::from(fault.number()),
        };
    }
    done.iter().filter(|done| matches!(done, Ok(true))).count() as i64
}

impl Handle {
    fn block(&self, got: Got) -> CBlock {
        match got {
            Got::Leased { lease, offset, len } => {
                let bytes = self.client.shared().arena.leased(offset, len).unwrap_or_default();
                CBlock { bytes: bytes.as_ptr(), len, lease, status: LEASED }
            }
            Got::Missing => failed(0),
            Got::Failed(fault) => failed(-i32::from(fault.number())),
        }
    }

    /// # Safety
    /// Each block's pointers are null or point to what its fields say.
    unsafe fn put(
        &self,
        blocks: &[CNew],
        is_durable: bool,
    ) -> Result<Vec<Result<bool, Fault>>, Error> {
        let (mut done, mut gathered) = (Vec::with_capacity(blocks.len()), Vec::new());
        for block in blocks {
            // SAFETY: by this function's contract.
            let (own, parent, label) = unsafe {
                (names(block.name, 1)?, parent(block)?, bytes(block.label, block.label_len)?)
            };
            // SAFETY: by this function's contract.
            let draft = match unsafe { self.draft(block) } {
                Err(Error::StagingFull { .. }) if !gathered.is_empty() => {
                    done.extend(self.client.commit(std::mem::take(&mut gathered), is_durable)?);
                    // SAFETY: by this function's contract.
                    unsafe { self.draft(block) }
                }
                draft => draft,
            };
            let (draft, label) = (draft?, label.to_vec());
            gathered.push(Written { name: own[0], parent, label, draft });
        }
        done.extend(self.client.commit(gathered, is_durable)?);
        Ok(done.into_iter().map(|result| result.map(|()| true)).collect())
    }

    /// The block in staging memory: where it was made, or by a copy.
    ///
    /// # Safety
    /// The block's bytes are null or as long as it says.
    unsafe fn draft(&self, block: &CNew) -> Result<Draft, Error> {
        if let Some(draft) = guard(&self.drafts).remove(&(block.bytes as usize)) {
            let is_whole = draft.len() as u64 == block.len;
            return if is_whole {
                Ok(draft)
            } else {
                Err(Error::Invalid("a reserved block is put with its own length"))
            };
        }
        // SAFETY: by this function's contract.
        let bytes = unsafe { bytes(block.bytes, block.len) }?;
        let mut draft = self.client.reserve(bytes.len())?;
        draft.copy_from_slice(bytes);
        Ok(draft)
    }
}

/// # Safety
/// The parent is null or points to 32 bytes.
unsafe fn parent(block: &CNew) -> Result<Option<Name>, Error> {
    if block.parent.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract.
    Ok(unsafe { names(block.parent, 1) }?.first().copied())
}
