package matrix

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// reader is a container that reads cold files all the time.
type reader struct {
	*box
	seen  int
	bytes int64
}

// readScript reads the files of /data, each once, and compares what it read with the
// file's name. /count grows by a byte for each of them.
const readScript = `cd /data
for f in *; do
  s=$(sha256sum $f 2>&1)
  [ "${s%% *}" = $f ] || echo "$f: $s" >>/errors
  echo >>/count
  sleep 0.05
done
echo "the files have run out" >>/errors
sleep 100000`

func (h *host) read(name string) *reader {
	h.t.Helper()
	r := &reader{box: h.start(name, h.fast, "sh", "-c", readScript)}
	r.goesOn("after its start")
	return r
}

// count is how many files were read, which all have to be right.
func (r *reader) count() (int, error) {
	bad, err := os.ReadFile(r.inside("/errors"))
	if err == nil {
		return 0, fmt.Errorf("reading cold files: %s", bad)
	}
	fi, serr := os.Stat(r.inside("/count"))
	if errors.Is(serr, fs.ErrNotExist) && errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if serr != nil {
		return 0, serr
	}
	return int(fi.Size()), nil
}

// goesOn waits until twenty more files were read, out of the registry, and fails the
// test where one of all was not right.
func (r *reader) goesOn(when string) {
	r.h.t.Helper()
	const more = 20
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		n, err := r.count()
		if err != nil {
			r.h.t.Fatalf("%s: %v", when, err)
		}
		if got := r.h.received(); n >= r.seen+more && got > r.bytes {
			r.seen, r.bytes = n, got
			return
		}
		if time.Now().After(end) {
			r.h.t.Fatalf("%s: the container reads no cold files any more: %d files", when, n)
		}
	}
}

// received is how many bytes the node has received from anywhere.
func (h *host) received() (sum int64) {
	h.t.Helper()
	b, err := os.ReadFile(h.Path("/proc/1/net/dev"))
	h.must(err)
	for line := range strings.Lines(string(b)) {
		name, figures, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) == "lo" {
			continue
		}
		n, err := strconv.ParseInt(strings.Fields(figures)[0], 10, 64)
		h.must(err)
		sum += n
	}
	return sum
}

// mounts are those that a process of the node sees.
func (h *host) mounts(pid int) []*mountinfo.Info {
	h.t.Helper()
	f, err := os.Open(h.Path(fmt.Sprintf("/proc/%d/mountinfo", pid)))
	h.must(err)
	defer func() { _ = f.Close() }()
	all, err := mountinfo.GetMountsFromReader(f, nil)
	h.must(err)
	return all
}

// rootIs says what the container's root is: the type of its file system, and that of
// what is below an overlay.
func (b *box) rootIs() string {
	b.h.t.Helper()
	kind, lower := "", map[string]bool{}
	for _, m := range b.h.mounts(b.pid) {
		if m.Mountpoint != "/" {
			continue
		}
		kind = m.FSType
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			for _, prefix := range []string{"lowerdir=", "lowerdir+="} {
				if dirs, ok := strings.CutPrefix(option, prefix); ok {
					for dir := range strings.SplitSeq(dirs, ":") {
						lower[b.h.typeAt(dir)] = true
					}
				}
			}
		}
	}
	for l := range lower {
		kind += " over " + l
	}
	return kind
}

// typeAt is the type of the file system that a path of the node is on. containerd
// shortens long lists of layers; those paths are on its disk.
func (h *host) typeAt(path string) string {
	h.t.Helper()
	longest, kind := -1, "disk"
	for _, m := range h.mounts(1) {
		if (path == m.Mountpoint || strings.HasPrefix(path, strings.TrimSuffix(m.Mountpoint, "/")+"/")) && len(m.Mountpoint) >= longest {
			longest, kind = len(m.Mountpoint), m.FSType
		}
	}
	if filepath.IsAbs(path) && kind == "erofs" {
		return kind
	}
	return "disk"
}
