package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxCredentialsFile is how much of a file with credentials is read, in bytes.
// A Secret has at most 1 MiB, and a node may serve the pods of many.
const maxCredentialsFile = 16 << 20

// credentialsDir is a directory of files that ParseAuths reads. Their keys may carry
// a repository's path and wildcards, as those of image pull secrets may. Files are read in the order of their names, and again when changed.
type credentialsDir struct {
	path   string
	log    *slog.Logger
	report func(what string, err error)

	mu    sync.Mutex
	files map[string]*credentialsFile // by name
}

type credentialsFile struct {
	id      fileID
	entries []entry
	err     error
}

// fileID changes when a file does.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime time.Time
	mode         fs.FileMode
}

func identify(st fs.FileInfo) fileID {
	id := fileID{size: st.Size(), mtime: st.ModTime(), mode: st.Mode()}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		id.dev, id.ino, id.ctime = s.Dev, s.Ino, time.Unix(s.Ctim.Unix())
	}
	return id
}

// candidates are the credentials of all files for n.
func (d *credentialsDir) candidates(n imageName) []candidate {
	if d == nil || d.path == "" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := d.names()
	if err != nil {
		return []candidate{known(d.path, nil, err)}
	}
	var list []candidate
	for _, name := range names {
		f := d.read(name)
		if f.err != nil {
			list = append(list, known(name, nil, f.err))
		}
		var creds []Credential
		for _, e := range f.entries {
			if e.below(n) {
				creds = append(creds, e.Credential)
			}
		}
		if len(creds) > 0 {
			list = append(list, known(name, creds, nil))
		}
	}
	return list
}

// names lists the files, and forgets those that are gone. A directory that is
// not there yet has none.
func (d *credentialsDir) names() ([]string, error) {
	st, err := os.Stat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		clear(d.files)
		return nil, nil
	}
	if err == nil {
		err = guarded(st, d.path)
	}
	var found []os.DirEntry
	if err == nil {
		found, err = os.ReadDir(d.path)
	}
	if err != nil {
		err = fmt.Errorf("credentials directory: %w", err)
		d.report(d.path, err)
		return nil, err
	}
	d.report(d.path, nil)
	there := map[string]bool{}
	var names []string
	for _, f := range found {
		if n := f.Name(); strings.HasSuffix(n, ".json") && !strings.HasPrefix(n, ".") {
			names, there[n] = append(names, n), true
		}
	}
	for n := range d.files {
		if !there[n] {
			delete(d.files, n)
			d.report(filepath.Join(d.path, n), nil)
		}
	}
	return names, nil
}

// read returns the file name, reading it if it is new or changed.
func (d *credentialsDir) read(name string) *credentialsFile {
	full := filepath.Join(d.path, name)
	// A named pipe must not hold us up.
	f, err := os.OpenFile(full, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &credentialsFile{} // removed just now
	}
	var st fs.FileInfo
	if err == nil {
		defer func() { _ = f.Close() }() // only read
		st, err = f.Stat()
	}
	if err != nil {
		err = fmt.Errorf("credentials: %w", err)
		d.report(full, err)
		return &credentialsFile{err: err}
	}
	old := d.files[name]
	if old != nil && old.id == identify(st) {
		return old
	}
	now := &credentialsFile{id: identify(st)}
	now.entries, now.err = d.parse(f, st, full)
	d.files[name] = now
	d.report(full, now.err)
	return now
}

func (d *credentialsDir) parse(f io.Reader, st fs.FileInfo, full string) ([]entry, error) {
	if err := guarded(st, full); err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("credentials: %s is no regular file", full)
	}
	if st.Mode().Perm()&0o044 != 0 {
		d.log.Warn("credentials can be read by others: chmod 0600", "file", full)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredentialsFile+1))
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if len(b) > maxCredentialsFile {
		return nil, fmt.Errorf("credentials: %s is longer than %d bytes", full, maxCredentialsFile)
	}
	auths, bad, err := ParseAuths(b)
	if err != nil {
		return nil, fmt.Errorf("credentials: %s: %w", full, err)
	}
	for _, b := range bad {
		d.log.Warn("credentials that cannot be used", "file", full, "reason", b)
	}
	return entries(auths), nil
}

// guarded says why others than root and we could have put what is there.
func guarded(st fs.FileInfo, full string) error {
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others than its owner: chmod go-w", full)
	}
	if s, ok := st.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, neither to root nor to the user we run as", full, s.Uid)
	}
	return nil
}
