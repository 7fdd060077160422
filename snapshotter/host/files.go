package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// readOptional reads a file; one that is not there is nil.
func readOptional(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && b == nil {
		b = []byte{}
	}
	return b, err
}

// writeFile replaces a file as a whole, and keeps its mode and owner where it was
// there. changed is false where it is the same already: then not even its times
// change, as they tell whether containerd has read it. nil removes the file.
func writeFile(path string, data []byte, mode fs.FileMode) (changed bool, err error) {
	old, err := readOptional(path)
	if err != nil {
		return false, err
	}
	if old == nil && data == nil || old != nil && data != nil && bytes.Equal(old, data) {
		return false, nil
	}
	if data == nil {
		return true, os.Remove(path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, replace(path, data, mode)
}

// replace writes a new file and gives it the name.
func replace(path string, data []byte, mode fs.FileMode) (err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // the link stays
	}
	var owner *unix.Stat_t
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err == nil {
		owner, mode = &st, fs.FileMode(st.Mode&0o777)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".apparate-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error counts
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode))
	if owner != nil {
		err = errors.Join(err, f.Chown(int(owner.Uid), int(owner.Gid)))
	}
	// The configuration of a machine that loses power now must not be empty after.
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	err = os.Rename(f.Name(), path)
	if errors.Is(err, unix.EBUSY) { // a file that something is mounted on
		return errors.Join(os.WriteFile(path, data, mode), os.Remove(f.Name()))
	}
	return err
}

// CopyProgram installs the program src as dst, at once or not at all, and makes dst's
// directory. changed is false where it is there.
func CopyProgram(src, dst string) (changed bool, err error) {
	want, err := digest(src)
	if err != nil {
		return false, err
	}
	if have, err := digest(dst); err == nil && have == want {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return false, err
	}
	in, err := os.Open(src)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.CreateTemp(filepath.Dir(dst), ".apparate-*")
	if err != nil {
		return false, err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), dst)
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("installing %s: %w", dst, err), os.Remove(out.Name()))
	}
	return true, nil
}

func digest(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func sum(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(fmt.Appendf(nil, "%d %t\n", len(p), p == nil))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// edit is a file of the host that was changed for us.
type edit struct {
	// Path is the file. Before and After are what it was and what we wrote; nil: no
	// file.
	Path   string `json:"path"`
	Before []byte `json:"before"`
	After  []byte `json:"after"`
	// Changed is when the file was last changed before us, and Created says that a
	// directory was made for it.
	Changed time.Time `json:"changed"`
	Created string    `json:"created,omitempty"`
}

// state is what a machine remembers of its installation, in Dir.
type state struct {
	// Edit is nil before the first change of containerd's configuration, and after
	// it was taken back.
	Edit *edit `json:"edit,omitempty"`
	// Root is the directory of snapshots and cache.
	Root string `json:"root"`
	// Original is the default snapshotter without us.
	Original string `json:"original"`
	// Drain is the drop-in for the time after: see dropin.Plan.
	Drain []byte `json:"drain,omitempty"`
	// Containerd is how containerd runs, for a process that finds it dead.
	Config  string   `json:"config"`
	Socket  string   `json:"socket"`
	Restart []string `json:"restart,omitempty"`
	// Loaded is the process that was seen to have read the drop-in of the digest.
	Loaded loaded `json:"loaded"`
	// Retiring is true once the installation is being taken back.
	Retiring bool `json:"retiring,omitempty"`
	// Switched is when containerd was restarted with the drop-in.
	Switched time.Time `json:"switched"`
	// Failed is the last attempt that was rolled back.
	Failed failed `json:"failed"`
	// Daemon is a digest of program and options that the daemon runs with.
	Daemon string `json:"daemon"`
}

type loaded struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"`
	Digest  string `json:"digest"`
}

type failed struct {
	Digest string    `json:"digest,omitempty"`
	Error  string    `json:"error,omitempty"`
	At     time.Time `json:"at"`
	Times  int       `json:"times,omitempty"`
}

func (m *Machine) stateFile() string { return m.path("state.json") }

// load reads the state; none is the zero state.
func (m *Machine) load() (s state, err error) {
	b, err := readOptional(m.stateFile())
	if err != nil || b == nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s is damaged: %w: restore containerd's configuration by hand, then remove it", m.stateFile(), err)
	}
	return s, nil
}

func (m *Machine) save(s state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	_, err = writeFile(m.stateFile(), append(b, '\n'), 0o600) // it has parts of containerd's configuration
	return err
}

// mountsBelow are the mount points at dir and below it.
func mountsBelow(dir string) (all []string) {
	for line := range strings.Lines(mounts()) {
		f := strings.Fields(line)
		if len(f) > 1 && (f[1] == dir || strings.HasPrefix(f[1], dir+"/")) {
			all = append(all, f[1])
		}
	}
	return all
}
