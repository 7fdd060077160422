package encode

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"hash"
	"hash/maphash"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// xattrPrefix begins the PAX records that carry extended attributes.
const xattrPrefix = "SCHILY.xattr."

// sparsePrefix begins the PAX records of sparse files (GNU tar, "PAX 0.0 to 1.0").
const sparsePrefix = "GNU.sparse."

// entry is one element of the TOC's "entries" (eStargz specification, "TOC").
// Its fields are in the order in which they are written.
type entry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size,omitempty"`
	ModTime     string            `json:"modtime,omitempty"`
	LinkName    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	UserName    string            `json:"userName,omitempty"`
	GroupName   string            `json:"groupName,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	InnerOffset int64             `json:"innerOffset,omitempty"`
	DevMajor    int64             `json:"devMajor,omitempty"`
	DevMinor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`

	// when and sum are ModTime and ChunkDigest as the layer index has them.
	when time.Time
	sum  [sha256.Size]byte
}

// file is a regular file whose chunks are under way.
type file struct {
	entry *entry
	size  int64
	// sum and chunks are the sink's: the digest of the file so far, and the
	// chunks that wait for the first entry to get it.
	sum    hash.Hash
	chunks []entry
}

// newEntry returns what the TOC says about h, or why it cannot.
func newEntry(h *tar.Header) (*entry, error) {
	if why := unsupported(h); why != "" {
		return nil, &UnsupportedError{Entry: h.Name, Reason: why}
	}
	e := &entry{
		Name: h.Name,
		// RFC3339Nano writes no fraction for whole seconds. The epoch is written
		// as well: readers take an absent time for "unknown".
		ModTime:   h.ModTime.UTC().Format(time.RFC3339Nano),
		Mode:      h.Mode & 0o7777,
		UID:       h.Uid,
		GID:       h.Gid,
		UserName:  h.Uname,
		GroupName: h.Gname,
		when:      h.ModTime,
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrPrefix); ok {
			if e.Xattrs == nil {
				e.Xattrs = make(map[string][]byte)
			}
			e.Xattrs[name] = []byte(v)
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Type, e.Size = "reg", h.Size
		if h.Size == 0 {
			e.Digest = emptyDigest
		}
	case tar.TypeDir:
		e.Type = "dir"
	case tar.TypeSymlink:
		e.Type, e.LinkName = "symlink", h.Linkname
	case tar.TypeLink:
		e.Type, e.LinkName = "hardlink", h.Linkname
	case tar.TypeFifo:
		e.Type = "fifo"
	case tar.TypeChar:
		e.Type, e.DevMajor, e.DevMinor = "char", h.Devmajor, h.Devminor
	case tar.TypeBlock:
		e.Type, e.DevMajor, e.DevMinor = "block", h.Devmajor, h.Devminor
	}
	return e, nil
}

// emptyDigest is the digest of no bytes.
const emptyDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// unsupported says what keeps h out of a TOC; "" when nothing does.
func unsupported(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	case tar.TypeGNUSparse:
		return "sparse files cannot be read in place"
	default:
		return fmt.Sprintf("no file system has files of tar type %q", h.Typeflag)
	}
	if why := unsupportedText(h); why != "" {
		return why
	}
	for _, id := range []int{h.Uid, h.Gid} {
		// The largest 32-bit number is the kernel's "no owner".
		if id < 0 || int64(id) >= math.MaxUint32 {
			return fmt.Sprintf("owner %d is no user or group number", id)
		}
	}
	// Linux has 12 bits for the major and 20 for the minor number.
	device := h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock
	if device && (h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20) {
		return fmt.Sprintf("%d:%d is no device number", h.Devmajor, h.Devminor)
	}
	if y := h.ModTime.UTC().Year(); y < 1 || y > 9999 {
		return fmt.Sprintf("year %d of the modification time cannot be written", y)
	}
	return ""
}

// unsupportedText looks at names: JSON carries UTF-8 only.
func unsupportedText(h *tar.Header) string {
	texts := map[string]string{"name": h.Name, "link target": h.Linkname, "user name": h.Uname, "group name": h.Gname}
	for _, what := range []string{"name", "link target", "user name", "group name"} {
		if !utf8.ValidString(texts[what]) {
			return fmt.Sprintf("the %s %q is not UTF-8", what, texts[what])
		}
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, sparsePrefix) {
			return "sparse files cannot be read in place"
		}
		if strings.HasPrefix(k, xattrPrefix) && !utf8.ValidString(k) {
			return "an extended attribute's name is not UTF-8"
		}
	}
	for _, name := range []string{h.Name, hardlinkTarget(h)} {
		for part := range strings.SplitSeq(name, "/") {
			if part == ".." {
				return fmt.Sprintf("the name %q leads through \"..\"", name)
			}
		}
	}
	if CleanName(h.Name) == "" && h.Typeflag != tar.TypeDir {
		return "only a directory can be the root"
	}
	if h.Typeflag == tar.TypeSymlink && h.Linkname == "" {
		return "a symbolic link without a target"
	}
	return ""
}

func hardlinkTarget(h *tar.Header) string {
	if h.Typeflag == tar.TypeLink {
		return h.Linkname
	}
	return ""
}

// names remembers which paths the layer has, to find what readers of a TOC
// stumble over: hard links that lead nowhere, to a directory or in a circle.
type names struct {
	seed maphash.Seed
	// seen has a few bytes for each path, the path itself being hashed: only a
	// collision could hide a dangling link, which readers then report.
	seen  map[uint64]nameBits
	links map[string]string // hard links by clean path
}

type nameBits uint8

const (
	isDir nameBits = 1 << iota
	isOther
	// wasChunked stays when a later entry takes the name.
	wasChunked
)

func newNames() *names {
	return &names{seed: maphash.MakeSeed(), seen: make(map[uint64]nameBits), links: make(map[string]string)}
}

// add notes the entry of h. Of entries with the same path the last one wins.
func (n *names) add(h *tar.Header, chunked bool) error {
	name := CleanName(h.Name)
	key := maphash.String(n.seed, name)
	bits := n.seen[key] & wasChunked
	if bits != 0 && !chunked && h.Typeflag == tar.TypeReg && h.Size > 0 {
		// stargz's reader would serve the chunks of the older entry.
		return &UnsupportedError{Entry: h.Name, Reason: "the name occurs twice, as a large and as a small file"}
	}
	if chunked {
		bits |= wasChunked
	}
	if h.Typeflag == tar.TypeDir {
		bits |= isDir
	} else {
		bits |= isOther
	}
	n.seen[key] = bits
	delete(n.links, name)
	if h.Typeflag == tar.TypeLink {
		n.links[name] = CleanName(h.Linkname)
	}
	return nil
}

// check follows every hard link to its end.
func (n *names) check() error {
	for name, target := range n.links {
		// A chain longer than the number of links has to be a circle.
		for range len(n.links) {
			next, ok := n.links[target]
			if !ok {
				break
			}
			target = next
		}
		if _, circle := n.links[target]; circle {
			return &UnsupportedError{Entry: name, Reason: "a hard link to itself"}
		}
		switch bits := n.seen[maphash.String(n.seed, target)]; {
		case bits&isDir != 0:
			return &UnsupportedError{Entry: name, Reason: fmt.Sprintf("a hard link to the directory %q", target)}
		case bits&isOther == 0:
			return &UnsupportedError{Entry: name, Reason: fmt.Sprintf("a hard link to %q, which is not in this layer", target)}
		}
	}
	return nil
}
