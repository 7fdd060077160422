package service

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// output is where a process writes: a path that a link in /proc/PID/fd names.
type output struct {
	path string
	from int64 // what was written before is of no interest
}

// mark is the output from now on.
func (o output) mark() output {
	if fi, err := os.Stat(o.path); o.isFile() && err == nil {
		o.from = fi.Size()
	}
	return o
}

// isFile says whether it is a regular file that is still there: pipes may have lost
// their reader, which would be the end of who writes to them.
func (o output) isFile() bool {
	fi, err := os.Stat(o.path)
	return filepath.IsAbs(o.path) && err == nil && fi.Mode().IsRegular()
}

// last is the last line, for an error.
func (o output) last() string {
	const most = 4 << 10
	if !o.isFile() {
		return ""
	}
	f, err := os.Open(o.path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read
	fi, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, most)
	n, _ := f.ReadAt(b, max(o.from, fi.Size()-most)) // less is no matter
	if line := lastLine(b[:n]); line != "" {
		return ": " + line
	}
	return ""
}

// open opens what is to be written to from now on in place of it.
func (o output) open(otherwise string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_APPEND
	switch {
	case o.path == os.DevNull:
		return os.OpenFile(os.DevNull, flags, 0)
	case o.isFile():
		return os.OpenFile(o.path, flags, 0)
	}
	f, err := os.OpenFile(otherwise, flags|os.O_CREATE, 0o640)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return os.OpenFile(os.DevNull, flags, 0)
	}
	return f, err
}

// spawn starts cmd where the runtime was, with its output, its limits and its groups,
// and makes it the runtime's process. words is what it says on its standard error.
func (r *runtimeProcess) spawn(cmd *exec.Cmd) (words output, err error) {
	stdout, err := r.stdout.open(r.Log)
	if err != nil {
		return output{}, err
	}
	defer func() { err = errors.Join(err, stdout.Close()) }() // the process has it
	stderr, err := r.stderr.open(r.Log)
	if err != nil {
		return output{}, err
	}
	defer func() { err = errors.Join(err, stderr.Close()) }() // the process has it
	cmd.Stdout, cmd.Stderr = stdout, stderr
	words = output{path: stderr.Name()}.mark()
	g := r.group
	if !g.exists() {
		// Gone with its last process. Others manage what is above.
		if g, err = groupOfProcess(1); err != nil {
			return output{}, err
		}
	}
	slog.Warn("nothing has started the container runtime again: starting it as it was started before",
		"command", strings.Join(cmd.Args, " "), "output", words.path)
	if err := spawn(cmd, g); err != nil {
		return output{}, err
	}
	pid := cmd.Process.Pid
	for i, l := range r.limits {
		var have unix.Rlimit
		if err := unix.Prlimit(pid, i, nil, &have); err != nil {
			continue // it has ended
		}
		if i == unix.RLIMIT_NOFILE {
			// What Go programs see of the soft limit is what they made of it.
			l.Cur = min(have.Cur, l.Max)
		}
		_ = unix.Prlimit(pid, i, &l, nil) // as far as we may
	}
	setOOM(pid, r.oom)
	r.process, err = findProcess(pid) // it is our child: nobody else has its pid
	return words, err
}
