package cache

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/toc"
)

// Errors of a Store, to be found with errors.Is.
var (
	// ErrLocked says that another process uses the directory.
	ErrLocked = errors.New("cache directory is in use by another process")
	// ErrInUse says that a layer cannot be removed while it is open.
	ErrInUse = errors.New("layer is in use")
	// ErrFull says that a chunk does not fit into the budget, whatever is evicted.
	ErrFull = errors.New("cache budget is exhausted")
	// ErrClosed says that the Store was closed.
	ErrClosed = errors.New("cache is closed")
)

const (
	dataName  = "data"
	stateName = "state"
	lockName  = ".lock"
	// tempPrefix begins the names that a crash may leave behind; Open removes
	// them. No key and no file name may begin with a dot.
	tempPrefix = ".tmp-"
	// maxSmallFile bounds what ReadFile takes into memory.
	maxSmallFile = 1 << 30
)

// Options are the choices of a Store; the zero value is a cache without limit.
type Options struct {
	// Budget is how many bytes of disk all layers may take; 0 means no limit.
	Budget int64
	// InUse are the keys of layers that somebody reads, though nobody has them open
	// yet: those of images that were mounted by an earlier process. They are not evicted
	// as a whole until Settled is called.
	InUse []string
	// OnEvict is called after a layer that nobody used was removed to make room,
	// with no lock held, on the goroutine that wanted room (in Open, too): it must
	// be quick.
	OnEvict func(key string)
	// Logger gets what goes wrong with the disk, at most once a minute; nil means
	// slog.Default.
	Logger *slog.Logger
}

// Store is a directory of layers. All methods may be called in parallel.
type Store struct {
	dir  string
	o    Options
	lock *os.File
	full limiter
	// tick counts chunks written: the clock that chunks are aged by.
	tick atomic.Uint32
	// buffers holds *[]byte for hashing unverified chunks.
	buffers sync.Pool

	// evicting is held while room is made, so that two writers do not both.
	evicting sync.Mutex

	mu       sync.Mutex
	closed   bool
	layers   map[string]*entry
	used     int64 // sum of all entries, as allocated on disk
	reserved int64 // room promised to writes under way
}

// entry is one layer's directory; guarded by Store.mu.
type entry struct {
	key      string
	refs     int
	held     bool  // by Options.InUse
	sealed   bool  // gives up no chunks; see Blob.Seal
	blob     *Blob // nil when refs is 0
	data     int64 // bytes of disk behind data
	small    int64 // bytes of disk behind everything else
	lastUsed time.Time
}

// Open opens the cache in dir, which it creates when it is missing. Only one
// process may have it open (ErrLocked); Close gives it back. dir belongs to the
// Store: what is no layer in it is removed.
func Open(dir string, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the cache directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, o: o, lock: lock, full: limiter{every: time.Minute}, layers: map[string]*entry{}}
	if err := s.scan(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	for _, key := range o.InUse {
		if e := s.layers[key]; e != nil {
			e.held = true
		}
	}
	// The budget may be smaller than it was.
	s.makeRoom(0)
	return s, nil
}

// Settled says that whatever uses layers has them open now; see Options.InUse.
func (s *Store) Settled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.layers {
		e.held = false
	}
}

// lockDir takes the lock that the kernel drops when the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the cache: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// scan learns which layers are there and removes what a crash left.
func (s *Store) scan() error {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("read the cache directory: %w", err)
	}
	for _, d := range names {
		path := filepath.Join(s.dir, d.Name())
		switch {
		case d.Name() == lockName:
		case !d.IsDir() || !validName(d.Name()):
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove %q from the cache: %w", d.Name(), err)
			}
		default:
			e, err := scanLayer(path, d.Name())
			if err != nil {
				return err
			}
			s.layers[e.key] = e
			s.used += e.data + e.small
		}
	}
	return nil
}

// scanLayer sizes one layer's directory. Its last use is the last change of a
// small file: state is touched when a layer is closed.
func scanLayer(dir, key string) (*entry, error) {
	e := &entry{key: key}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read a layer in the cache: %w", err)
	}
	for _, d := range files {
		path := filepath.Join(dir, d.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		switch {
		case strings.HasPrefix(d.Name(), tempPrefix) || d.IsDir():
			if err := os.RemoveAll(path); err != nil {
				return nil, fmt.Errorf("remove what a crash left: %w", err)
			}
			continue
		case d.Name() == dataName:
			e.data += st.Blocks * 512
			continue
		case d.Name() == sealedName:
			e.sealed = true
		}
		e.small += smallSize(&st)
		if t := time.Unix(st.Mtim.Unix()); t.After(e.lastUsed) {
			e.lastUsed = t
		}
	}
	return e, nil
}

// Close gives the directory back. Layers that are still open are closed: their
// reads fail from then on.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var open []*Blob
	for _, e := range s.layers {
		if e.blob != nil {
			open = append(open, e.blob)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, b := range open {
		errs = append(errs, b.shut())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// Keys returns the keys of all layers on disk, sorted.
func (s *Store) Keys() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	keys := make([]string, 0, len(s.layers))
	for k := range s.layers {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys, nil
}

// Blob opens the chunks of a layer, whose content idx lists; the layer is made
// when it is new. Opening a layer twice gives the same Blob: each Blob call wants
// one Close. A layer that is open is never evicted as a whole.
func (s *Store) Blob(key string, idx *toc.Index) (*Blob, error) {
	if !validName(key) {
		return nil, fmt.Errorf("cache key %q is no plain file name", key)
	}
	b, err := s.openBlob(key, idx)
	if isFull(err) {
		// Even an empty layer needs some disk: give up some of ours.
		s.freeSome(1 << 20)
		b, err = s.openBlob(key, idx)
	}
	if err != nil {
		return nil, fmt.Errorf("open layer %s in the cache: %w", key, err)
	}
	return b, nil
}

func (s *Store) openBlob(key string, idx *toc.Index) (*Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	e := s.layers[key]
	if e != nil && e.blob != nil {
		if len(e.blob.idx.Chunks) != len(idx.Chunks) || e.blob.idx.DataSize != idx.DataSize {
			return nil, errors.New("it is open with another content list")
		}
		e.refs++
		return e.blob, nil
	}
	dir := filepath.Join(s.dir, key)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if e == nil {
		e = &entry{key: key, lastUsed: time.Now()}
		s.layers[key] = e
	}
	b, err := newBlob(s, e, dir, idx)
	if err != nil {
		return nil, err
	}
	e.refs, e.blob = 1, b
	s.resizeLocked(e, b.allocated(), dir)
	return b, nil
}

// Remove deletes a layer and all its files; ErrInUse while it is open. A layer
// that is not there is no error.
func (s *Store) Remove(key string) error {
	if !validName(key) {
		return fmt.Errorf("cache key %q is no plain file name", key)
	}
	s.mu.Lock()
	e := s.layers[key]
	if e == nil {
		s.mu.Unlock()
		return nil
	}
	if e.refs > 0 {
		s.mu.Unlock()
		return fmt.Errorf("remove layer %s from the cache: %w", key, ErrInUse)
	}
	gone, err := s.detachLocked(e)
	s.mu.Unlock()
	if err == nil {
		err = os.RemoveAll(gone)
	}
	if err != nil {
		return fmt.Errorf("remove layer %s from the cache: %w", key, err)
	}
	return nil
}

// detachLocked takes a layer's directory out of sight in one step, so that a
// layer of the same key can be made at once, and returns what is to be deleted.
func (s *Store) detachLocked(e *entry) (gone string, err error) {
	gone, err = os.MkdirTemp(s.dir, tempPrefix)
	if err != nil {
		// A full disk may refuse the new directory: delete in place.
		gone = filepath.Join(s.dir, e.key)
	} else if err := os.Rename(filepath.Join(s.dir, e.key), filepath.Join(gone, e.key)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", errors.Join(err, os.Remove(gone))
	}
	delete(s.layers, e.key)
	s.used -= e.data + e.small
	return gone, nil
}

// Usage is how many bytes of disk all layers take.
func (s *Store) Usage() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// BlobUsage is how many bytes of disk a layer takes; 0 when it is not there.
func (s *Store) BlobUsage(key string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.layers[key]; e != nil {
		return e.data + e.small
	}
	return 0
}

// Room is how many bytes the layers in use could still grow by, as unused
// layers are evicted first. Fetching ahead of need beyond it would only push out
// what is needed.
func (s *Store) Room() int64 {
	if s.o.Budget == 0 {
		return math.MaxInt64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.o.Budget - s.reserved
	for _, e := range s.layers {
		if e.refs > 0 || e.held {
			room -= e.data + e.small
		}
	}
	return max(room, 0)
}

// Full says that the layers in use take nearly the whole budget: there is no
// room for what nobody asked for yet.
func (s *Store) Full() bool { return s.Room() < s.o.Budget/16 }

// WriteFile keeps b under name beside the chunks of a layer. A reader sees the
// old or the new content, never a part.
func (s *Store) WriteFile(key, name string, b []byte) error {
	if !validName(key) || !validName(name) || name == dataName || name == stateName || name == sealedName {
		return fmt.Errorf("cache file %q of layer %q: not a name for a file", name, key)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	dir := filepath.Join(s.dir, key)
	err := os.Mkdir(dir, 0o700)
	if err == nil || errors.Is(err, os.ErrExist) {
		err = replaceFile(dir, name, b)
	}
	if err == nil {
		e := s.layers[key]
		if e == nil {
			e = &entry{key: key, lastUsed: time.Now()}
			s.layers[key] = e
		}
		s.resizeLocked(e, e.data, dir)
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("write %s of layer %s to the cache: %w", name, key, err)
	}
	s.makeRoom(0)
	return nil
}

// replaceFile writes a file under another name and moves it into place.
func replaceFile(dir, name string, b []byte) error {
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// ReadFile returns what WriteFile kept; errors.Is(err, fs.ErrNotExist) when it
// is not there. The bytes are as little trusted as any on disk: the caller
// checks them.
func (s *Store) ReadFile(key, name string) ([]byte, error) {
	if !validName(key) || !validName(name) {
		return nil, fmt.Errorf("cache file %q of layer %q: not a name for a file", name, key)
	}
	f, err := openRegular(filepath.Join(s.dir, key, name), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile))
	_ = f.Close() // only read from
	if err != nil {
		return nil, fmt.Errorf("read %s of layer %s from the cache: %w", name, key, err)
	}
	return b, nil
}

// resizeLocked brings the account of a layer up to date.
func (s *Store) resizeLocked(e *entry, data int64, dir string) {
	small := int64(0)
	// A directory that cannot be read is counted as empty: the next chunk
	// written tells the caller what is wrong with the disk.
	files, _ := os.ReadDir(dir)
	for _, d := range files {
		var st unix.Stat_t
		if d.Name() != dataName && unix.Lstat(filepath.Join(dir, d.Name()), &st) == nil {
			small += smallSize(&st)
		}
	}
	s.used += data + small - e.data - e.small
	e.data, e.small = data, small
}

// smallSize is the disk behind a small file; state is sparse at first and
// counted as if it were not.
func smallSize(st *unix.Stat_t) int64 {
	return max(st.Blocks*512, (st.Size+toc.BlockSize-1)&^(toc.BlockSize-1))
}

// validName says whether a key or name is a plain file name which cannot leave
// its directory and is none of our own hidden ones.
func validName(s string) bool {
	return s != "" && len(s) <= 255 && s[0] != '.' && !strings.ContainsAny(s, "/\x00")
}
