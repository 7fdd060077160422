package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// WeirdCount is how many images Weird makes.
const WeirdCount = 3

// Weird returns a small image of several layers with what ordinary images lack
// and a layer may nevertheless carry. Image 0 is about inodes: attributes, links,
// devices, modes, owners, times, names. Image 1 is about layers: everything that
// one can do to another below it. Image 2 has names and targets that are not
// UTF-8, which the JSON of an eStargz TOC cannot carry. They are the same bytes
// each time. Other numbers are an error. (containerd drops "trusted." attributes
// when it unpacks; everything else arrives.)
func Weird(i int) (v1.Image, error) {
	var layers [][]entry
	switch i {
	case 0:
		layers = weirdInodes()
	case 1:
		layers = weirdLayers()
	case 2:
		layers = [][]entry{{
			{name: "latin1-\xe9\xff", text: "not UTF-8"},
			{name: "link", kind: tar.TypeSymlink, link: "latin1-\xe9\xff", mode: 0o777},
		}}
	default:
		return nil, fmt.Errorf("there are %d weird images, none is number %d", WeirdCount, i)
	}
	tars := make([]Blob, len(layers))
	for i, entries := range layers {
		text, err := weirdTar(entries)
		if err != nil {
			return nil, err
		}
		tars[i].Bytes = text
	}
	return Compose(tars...)
}

// entry is one tar entry; mode 0 means 0644, or 0755 for directories.
type entry struct {
	name, text, link string
	kind             byte // tar.Type…; 0 means a directory when name ends in a slash, else a file
	mode             int64
	uid, gid         int
	major, minor     int64
	time             time.Time
	xattrs           map[string]string
}

// weirdTar writes entries in PAX format, which alone holds all of them.
func weirdTar(entries []entry) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{
			Typeflag: e.kind, Name: e.name, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			Devmajor: e.major, Devminor: e.minor, ModTime: e.time, Format: tar.FormatPAX, PAXRecords: map[string]string{},
		}
		switch {
		case e.kind == 0 && strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.kind == 0:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.text))
		}
		switch {
		case e.mode != 0:
		case h.Typeflag == tar.TypeDir:
			h.Mode = 0o755
		default:
			h.Mode = 0o644
		}
		if h.ModTime.IsZero() {
			h.ModTime = created()
		}
		for k, v := range e.xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("entry %q: %w", e.name, err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			return nil, fmt.Errorf("entry %q: %w", e.name, err)
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// fileCapability is security.capability for cap_net_bind_service=ep: version 2
// of struct vfs_cap_data (linux/capability.h), effective bit set, little endian.
const fileCapability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// posixACL is system.posix_acl_access for u::rw-,u:1000:r--,g::r--,m::r--,o::r--
// (linux/posix_acl_xattr.h, version 2).
const posixACL = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
	"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"

func weirdInodes() [][]entry {
	fraction := time.Date(2023, 5, 6, 7, 8, 9, 123456789, time.UTC)
	long := strings.Repeat("d/", 60) + strings.Repeat("n", 255)
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB: several chunks
	return [][]entry{{
		{name: "./", mode: 0o711, uid: 3, gid: 4, time: time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC), xattrs: map[string]string{"user.root": "top"}},
		{name: "xattr/", xattrs: map[string]string{"user.dir": "on a directory", "trusted.dir": "t"}},
		{name: "xattr/capable", text: "#!", mode: 0o755, xattrs: map[string]string{"security.capability": fileCapability}},
		{name: "xattr/acl", text: "a", xattrs: map[string]string{"system.posix_acl_access": posixACL}},
		{name: "xattr/many", text: "m", xattrs: map[string]string{
			"user.empty": "", "user.zero": "\x00\x01\x00", "user.utf8": "größe", "user.long": strings.Repeat("v", 3000),
			"trusted.t": "t", "security.other": "s", "user.a.b.c": "dots",
		}},
		{name: "xattr/link", kind: tar.TypeSymlink, link: "many", mode: 0o777, xattrs: map[string]string{"trusted.onlink": "l"}},
		{name: "hard/"},
		{name: "hard/first", text: "shared", mode: 0o640, uid: 1000, gid: 1001, xattrs: map[string]string{"user.shared": "yes"}},
		{name: "hard/second", kind: tar.TypeLink, link: "hard/first"},
		{name: "hard/deeper/"},
		{name: "hard/deeper/third", kind: tar.TypeLink, link: "hard/second"},
		{name: "dev/"},
		{name: "dev/null", kind: tar.TypeChar, mode: 0o666, major: 1, minor: 3},
		{name: "dev/block", kind: tar.TypeBlock, mode: 0o660, gid: 6, major: 259, minor: 300},
		{name: "dev/fifo", kind: tar.TypeFifo, mode: 0o620},
		{name: "mode/"},
		{name: "mode/setuid", text: "x", mode: 0o4755},
		{name: "mode/setgid", text: "x", mode: 0o2711},
		{name: "mode/sticky/", mode: 0o1777},
		{name: "mode/sgiddir/", mode: 0o2775, gid: 50},
		{name: "mode/none", text: "unreadable", mode: 0o1000},
		{name: "owner/"},
		{name: "owner/big", text: "o", uid: 70_000, gid: 4_000_000_000},
		{name: "owner/nobody/", uid: 65534, gid: 65534},
		{name: "time/"},
		{name: "time/fraction", text: "t", time: fraction},
		{name: "time/old", text: "t", time: time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC)},
		{name: "time/far", text: "t", time: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)},
		{name: "name/"},
		{name: "name/" + long, text: "deep"},
		{name: "name/snowman-☃", text: "UTF-8"},
		{name: "name/ space\tand\nnewline", text: "n"},
		{name: "name/.wh", text: "no whiteout"},
		{name: "loop/"},
		{name: "loop/a", kind: tar.TypeSymlink, link: "b", mode: 0o777},
		{name: "loop/b", kind: tar.TypeSymlink, link: "a", mode: 0o777},
		{name: "loop/self", kind: tar.TypeSymlink, link: ".", mode: 0o777},
		{name: "loop/dangling", kind: tar.TypeSymlink, link: "/not/there", mode: 0o777},
		{name: "hard/tosymlink", kind: tar.TypeLink, link: "loop/dangling"},
		{name: "loop/long", kind: tar.TypeSymlink, link: strings.Repeat("x/", 1000), mode: 0o777},
		{name: "size/"},
		{name: "size/zero"},
		{name: "size/one", text: "1"},
		{name: "size/block", text: big[:4096]},
		{name: "size/block-and-one", text: big[:4097]},
		{name: "size/big", text: big},
		{name: "size/big-copy", text: big},
	}, {
		{name: "many/"},
	}, {}, manyFiles()}
}

// manyFiles fills a directory beyond one block of any file system's entries.
func manyFiles() []entry {
	var all []entry
	for i := range 600 {
		all = append(all, entry{name: fmt.Sprintf("many/file-with-a-rather-long-name-%04d", i), text: fmt.Sprint(i)})
	}
	return all
}

func weirdLayers() [][]entry {
	return [][]entry{{
		{name: "gone/"}, {name: "gone/file", text: "deleted above"}, {name: "gone/sub/"}, {name: "gone/sub/file", text: "with its directory"},
		{name: "gone/stays", text: "stays"},
		{name: "opaque/", xattrs: map[string]string{"user.below": "1"}}, {name: "opaque/old", text: "hidden"}, {name: "opaque/both", text: "below"}, {name: "opaque/sub/"}, {name: "opaque/sub/old", text: "hidden"},
		{name: "replaced/"}, {name: "replaced/file", text: "below"}, {name: "replaced/dir-by-file/"}, {name: "replaced/dir-by-file/x", text: "x"},
		{name: "replaced/file-by-dir", text: "file"}, {name: "replaced/link-by-dir", kind: tar.TypeSymlink, link: "/etc", mode: 0o777},
		{name: "replaced/dir-by-link/"}, {name: "replaced/dir-by-link/x", text: "x"},
		{name: "meta/", mode: 0o700}, {name: "meta/kept", text: "kept"},
		{name: "back/"}, {name: "back/file", text: "first"},
		{name: "hard/"}, {name: "hard/a", text: "linked below"}, {name: "hard/b", kind: tar.TypeLink, link: "hard/a"},
		{name: "etc/"}, {name: "etc/real", text: "in etc"}, {name: "alias", kind: tar.TypeSymlink, link: "etc", mode: 0o777},
		{name: "twice", text: "first in this layer"}, {name: "twice", text: "second in this layer"},
	}, {
		{name: "gone/.wh.file"}, {name: "gone/.wh.sub"}, {name: "gone/.wh.never-there"},
		{name: "opaque/", mode: 0o750, xattrs: map[string]string{"user.above": "2"}}, {name: "opaque/.wh..wh..opq"}, {name: "opaque/both", text: "above"}, {name: "opaque/new", text: "new"},
		{name: "replaced/file", text: "above"}, {name: "replaced/dir-by-file", text: "now a file"},
		{name: "replaced/file-by-dir/"}, {name: "replaced/file-by-dir/y", text: "y"},
		{name: "replaced/link-by-dir/"}, {name: "replaced/link-by-dir/z", text: "z"},
		{name: "replaced/dir-by-link", kind: tar.TypeSymlink, link: "file", mode: 0o777},
		{name: "meta/", mode: 0o711, uid: 7, gid: 8, time: time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)},
		{name: "back/.wh.file"},
		{name: "hard/a", text: "the other name keeps the old content"},
		{name: "no/parent/entry", text: "the directories above have no entry of their own"},
	}, {}, {
		{name: "back/file", text: "again"},
		{name: ".wh.alias"},
		{name: "opaque/sub/"}, {name: "opaque/sub/new", text: "the old ones stay hidden"},
		{name: "hard/c", text: "linked above"}, {name: "hard/d", kind: tar.TypeLink, link: "hard/c"},
	}}
}
