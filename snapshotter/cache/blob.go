package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/toc"
)

// The states of a chunk, the low bits of its word. The rest of the word is the
// generation, which grows when a chunk becomes busy.
const (
	missing    = 0 // not in data, or not known to be
	unverified = 1 // was there when the layer was opened
	verified   = 2 // written or hashed by this process
	busy       = 3 // one goroutine is changing its bytes
	stateMask  = 3
	generation = 4 // added to a word
)

// verifyLocks keep parallel first readers of a chunk from all hashing it.
const verifyLocks = 16

// maxPooled bounds the buffers kept for hashing.
const maxPooled = 4 << 20

// Blob is the chunks of one layer on disk. All methods may be called in
// parallel, also while chunks are evicted. Chunks are named by their index in
// toc.Index.Chunks; an index out of range panics.
type Blob struct {
	s    *Store
	e    *entry
	idx  *toc.Index
	data *os.File

	word []atomic.Uint32
	// stamp is Store.tick when a chunk was last written or read.
	stamp   []atomic.Uint32
	present atomic.Int64 // bytes of unverified and verified chunks
	trusted atomic.Int64 // number of verified chunks
	// sealed says that data has other readers: what it once had it keeps; see Seal.
	sealed  atomic.Bool
	hashing [verifyLocks]sync.Mutex

	mu    sync.Mutex // guards the bitmap and its file
	bits  []byte
	state *os.File
}

// newBlob opens or makes the two files in dir and takes the hint of state.
func newBlob(s *Store, e *entry, dir string, idx *toc.Index) (*Blob, error) {
	data, err := openRegular(filepath.Join(dir, dataName), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	state, err := openRegular(filepath.Join(dir, stateName), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	n := len(idx.Chunks)
	b := &Blob{
		s: s, e: e, idx: idx, data: data, state: state,
		word:  make([]atomic.Uint32, n),
		stamp: make([]atomic.Uint32, n),
		bits:  make([]byte, (n+7)/8),
	}
	b.sealed.Store(e.sealed)
	if err := b.load(); err != nil {
		return nil, errors.Join(err, data.Close(), state.Close())
	}
	return b, nil
}

// load gives data its length and marks the chunks that state speaks of. A short
// or overlong state is no error: it is a hint.
func (b *Blob) load() error {
	// An empty layer is a file of one block, as the kernel takes no empty ones.
	if err := b.data.Truncate(max(b.idx.DataSize, toc.BlockSize)); err != nil {
		return err
	}
	read, _ := b.state.ReadAt(b.bits, 0) // what cannot be read is missing
	clear(b.bits[read:])
	if err := b.state.Truncate(int64(len(b.bits))); err != nil {
		return err
	}
	now := b.s.tick.Load()
	for i := range b.word {
		b.stamp[i].Store(now)
		if b.bits[i/8]&(1<<(i%8)) != 0 {
			b.word[i].Store(unverified)
			b.present.Add(b.idx.Chunks[i].Size)
		}
	}
	return nil
}

// Have says whether chunk i is there, verified or not.
func (b *Blob) Have(i int) bool {
	s := b.word[i].Load() & stateMask
	return s == unverified || s == verified
}

// Present is how many bytes of content are there, verified or not.
func (b *Blob) Present() int64 { return b.present.Load() }

// Complete says that every chunk is there and was verified by this process.
// After a restart a layer becomes complete as its chunks are read; ReadAt with
// an empty p is enough.
func (b *Blob) Complete() bool { return b.trusted.Load() == int64(len(b.word)) }

// ReadAt fills p from off within chunk i. It is false, and p undefined, when the
// chunk is not there, is being evicted, or does not match its digest, in which case
// it is dropped. An error is the disk's; the caller may Drop the chunk and fetch
// it again. p must lie within the chunk.
func (b *Blob) ReadAt(i int, p []byte, off int64) (ok bool, err error) {
	c := &b.idx.Chunks[i]
	if off < 0 || off+int64(len(p)) > c.Size {
		return false, fmt.Errorf("cache: read [%d, %d) of chunk %d, which has %d bytes", off, off+int64(len(p)), i, c.Size)
	}
	w := b.word[i].Load()
	switch w & stateMask {
	case missing, busy:
		return false, nil
	case unverified:
		if w, err = b.verify(i); w == 0 || err != nil {
			return false, err
		}
	}
	if len(p) > 0 {
		if _, err := b.data.ReadAt(p, c.Addr+off); err != nil {
			return false, fmt.Errorf("cache: read chunk %d: %w", i, err)
		}
	}
	if b.word[i].Load() != w {
		return false, nil
	}
	if now := b.s.tick.Load(); b.stamp[i].Load() != now {
		b.stamp[i].Store(now)
	}
	return true, nil
}

// verify hashes an unverified chunk and returns its new word, 0 when it is of
// no use.
func (b *Blob) verify(i int) (uint32, error) {
	mu := &b.hashing[i%verifyLocks]
	mu.Lock()
	defer mu.Unlock()
	w := b.word[i].Load()
	switch w & stateMask {
	case verified:
		return w, nil
	case missing, busy:
		return 0, nil
	}
	c := &b.idx.Chunks[i]
	buf := b.s.buffer(c.Size)
	defer b.s.release(buf)
	if _, err := b.data.ReadAt(*buf, c.Addr); err != nil {
		return 0, fmt.Errorf("cache: read chunk %d: %w", i, err)
	}
	if sha256.Sum256(*buf) != c.Digest {
		// Unless it is being evicted, and half a hole is what was hashed.
		b.evict(i, w)
		b.s.settle(b, 0)
		return 0, nil
	}
	good := w&^stateMask | verified
	if !b.word[i].CompareAndSwap(w, good) {
		return 0, nil
	}
	b.trusted.Add(1)
	return good, nil
}

// Put keeps p, the whole of chunk i, which the caller has verified. When the
// chunk is there already, or is being written by another, nothing is done. An
// error (errors.Is ErrFull, ENOSPC, EDQUOT, EIO) means that the chunk is not kept;
// it is not a reason to fail a read. p is not used after Put returns.
func (b *Blob) Put(i int, p []byte) error {
	c := &b.idx.Chunks[i]
	if int64(len(p)) != c.Size {
		return fmt.Errorf("cache: chunk %d has %d bytes, not %d", i, c.Size, len(p))
	}
	w := b.word[i].Load()
	if w&stateMask == verified || !b.seize(i, w) {
		return nil
	}
	err := b.write(i, p)
	if err != nil {
		b.s.complain(err)
		return fmt.Errorf("cache: keep chunk %d: %w", i, err)
	}
	b.present.Add(c.Size)
	b.trusted.Add(1)
	b.stamp[i].Store(b.s.tick.Add(1))
	b.release(i, verified)
	return nil
}

// write makes room and writes a chunk that is seized. When it fails the chunk
// is released as missing.
func (b *Blob) write(i int, p []byte) error {
	c := &b.idx.Chunks[i]
	room := (c.Size + toc.BlockSize - 1) &^ (toc.BlockSize - 1)
	if err := b.s.reserve(room); err != nil {
		b.release(i, missing)
		return err
	}
	_, err := b.data.WriteAt(p, c.Addr)
	if err == nil {
		// The bit comes last: no bit, no chunk.
		err = b.mark(i, true)
	}
	if err != nil {
		b.discard(i)
	}
	b.s.settle(b, room)
	if isFull(err) {
		b.s.freeSome(8 * room)
	}
	return err
}

// Drop forgets chunk i and gives its disk back. A chunk that is just being
// written stays.
func (b *Blob) Drop(i int) {
	w := b.word[i].Load()
	if w&stateMask == missing || !b.seize(i, w) {
		return
	}
	b.discard(i)
	b.s.settle(b, 0)
}

// evict drops chunk i if its word still is w.
func (b *Blob) evict(i int, w uint32) {
	if s := w & stateMask; (s == unverified || s == verified) && b.seize(i, w) {
		b.discard(i)
	}
}

// discard makes a seized chunk missing.
func (b *Blob) discard(i int) {
	// A bit that stays set costs a hash after the next start, no more.
	_ = b.mark(i, false)
	b.punch(i)
	b.release(i, missing)
}

// seize makes a chunk busy if its word still is w; readers miss from here on,
// and only the caller may change its bytes until release.
func (b *Blob) seize(i int, w uint32) bool {
	if w&stateMask == busy || !b.word[i].CompareAndSwap(w, w&^stateMask+generation|busy) {
		return false
	}
	switch w & stateMask {
	case verified:
		b.trusted.Add(-1)
		fallthrough
	case unverified:
		b.present.Add(-b.idx.Chunks[i].Size)
	}
	return true
}

// release ends what seize began.
func (b *Blob) release(i int, state uint32) {
	b.word[i].Store(b.word[i].Load()&^stateMask | state)
}

// mark writes the bit of a chunk.
func (b *Blob) mark(i int, set bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, bit := i/8, byte(1)<<(i%8)
	if set {
		b.bits[at] |= bit
	} else {
		b.bits[at] &^= bit
	}
	_, err := b.state.WriteAt(b.bits[at:at+1], int64(at))
	return err
}

// punch gives back the disk behind a chunk, but for one of a sealed layer: its other
// readers find there what they found, and it is written again as it was. Blocks shared
// with a neighbour stay allocated. Where the file system cannot punch, only whole layers
// free disk.
func (b *Blob) punch(i int) {
	if b.sealed.Load() {
		return
	}
	c := &b.idx.Chunks[i]
	end := c.Addr + c.Size
	// Padding behind the end of a file is nobody's: take the whole block.
	if up := (end + toc.BlockSize - 1) &^ (toc.BlockSize - 1); i+1 == len(b.idx.Chunks) || b.idx.Chunks[i+1].Addr >= up {
		end = up
	}
	err := b.control(func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, c.Addr, end-c.Addr)
	})
	if err != nil && !errors.Is(err, os.ErrClosed) {
		b.s.complain(fmt.Errorf("free disk: %w", err))
	}
}

// allocated is how many bytes of disk are behind data.
func (b *Blob) allocated() int64 {
	var st unix.Stat_t
	if err := b.control(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return 0
	}
	return st.Blocks * 512
}

// control calls f with the descriptor of data, which stays open meanwhile.
func (b *Blob) control(f func(fd int) error) error {
	raw, err := b.data.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// Close gives back what one call of Store.Blob took. After the last one reads
// fail and the layer may be evicted.
func (b *Blob) Close() error {
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.e.refs == 0 {
		return nil
	}
	if b.e.refs--; b.e.refs > 0 {
		return nil
	}
	data := b.allocated()
	s.used += data - b.e.data
	b.e.data, b.e.blob, b.e.lastUsed = data, nil, time.Now()
	// So that the order of last use survives a restart.
	_ = os.Chtimes(b.state.Name(), b.e.lastUsed, b.e.lastUsed)
	return b.shut()
}

// shut closes the files; reads under way end first.
func (b *Blob) shut() error {
	err := errors.Join(b.data.Close(), b.state.Close())
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
