package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/apparate/apparate/snapshotter/toc"
)

// Extended attributes (Linux, fs/erofs/erofs_fs.h). They follow the inode: a
// header, then entries aligned to words of 4 bytes. None is shared between
// inodes: few images have many of them.
const (
	xattrHeaderSize = 12 // sizeof(struct erofs_xattr_ibody_header)
	xattrEntrySize  = 4  // sizeof(struct erofs_xattr_entry)
	xattrWord       = 4
	maxXattrName    = 1<<8 - 1  // bytes, without the prefix
	maxXattrValue   = 1<<16 - 1 // bytes
	// maxXattrBody is the largest body whose length in words, the header
	// counting as one, fits i_xattr_icount.
	maxXattrBody = xattrHeaderSize + (1<<16-2)*xattrWord
)

// splitXattr returns the number of an attribute's prefix (EROFS_XATTR_INDEX_*)
// and the rest of its name.
func splitXattr(name string) (prefix byte, rest string, ok bool) {
	switch name {
	case "system.posix_acl_access":
		return 2, "", true
	case "system.posix_acl_default":
		return 3, "", true
	}
	for _, p := range [...]struct {
		text   string
		number byte
	}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}} {
		if rest, ok := strings.CutPrefix(name, p.text); ok {
			return p.number, rest, rest != ""
		}
	}
	return 0, "", false
}

// xattrEntryLen is the space of an entry, in bytes.
func xattrEntryLen(rest string, value []byte) int {
	return align(xattrEntrySize+len(rest)+len(value), xattrWord)
}

// xattrSize returns the space of all attributes of an inode, in bytes, or why
// an inode cannot have them.
func xattrSize(all map[string][]byte) (int, error) {
	if len(all) == 0 {
		return 0, nil
	}
	size := xattrHeaderSize
	for name, value := range all {
		_, rest, ok := splitXattr(name)
		switch {
		case !ok:
			return 0, &toc.Error{Kind: toc.ErrUnsupported, What: fmt.Sprintf("EROFS has no extended attribute %.64q", name)}
		case len(rest) > maxXattrName:
			return 0, &toc.Error{Kind: toc.ErrLimit, What: fmt.Sprintf("the name of extended attribute %.64q is too long", name)}
		case len(value) > maxXattrValue:
			return 0, &toc.Error{Kind: toc.ErrLimit, What: fmt.Sprintf("extended attribute %.64q has %d bytes, the limit is %d", name, len(value), maxXattrValue)}
		}
		size += xattrEntryLen(rest, value)
	}
	if size > maxXattrBody {
		return 0, &toc.Error{Kind: toc.ErrLimit, What: fmt.Sprintf("%d bytes of extended attributes, the limit is %d", size, maxXattrBody)}
	}
	return size, nil
}

// xattrWords is a body's size as i_xattr_icount has it.
func xattrWords(size int) uint16 {
	if size == 0 {
		return 0
	}
	return uint16((size-xattrHeaderSize)/xattrWord + 1)
}

// putXattrs writes the attributes, sorted by name so that equal trees make equal
// images.
func putXattrs(p []byte, all map[string][]byte) {
	p = p[xattrHeaderSize:] // no filter, nothing shared: zeros
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value := all[name]
		prefix, rest, _ := splitXattr(name)
		p[0], p[1] = byte(len(rest)), prefix
		binary.LittleEndian.PutUint16(p[2:], uint16(len(value)))
		n := xattrEntrySize + copy(p[xattrEntrySize:], rest)
		copy(p[n:], value)
		p = p[xattrEntryLen(rest, value):]
	}
}
