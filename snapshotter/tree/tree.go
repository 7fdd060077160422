// Package tree merges the layers of a lazily mounted image into one directory
// tree, as overlayfs would show them: whiteouts, opaque directories, hard links.
package tree

import "github.com/apparate/apparate/snapshotter/toc"

// Node is one inode of the merged tree.
type Node struct {
	// Type is never toc.Hardlink: both names point at the same Node.
	Type     toc.Type
	Mode     uint32 // permission, setuid, setgid and sticky bits (07777)
	UID, GID uint32
	Sec      int64
	Nsec     uint32
	// Size is the length of a regular file in bytes; its content is
	// [Addr, Addr+Size) of device Device. Size is 0 for all other types.
	Size, Addr int64
	// Device is the index of the layer in the slice given to Merge.
	Device             int
	Link               string // target of a symlink
	DevMajor, DevMinor uint32
	Xattrs             map[string][]byte
	// Nlink is the link count that stat shows: names of a file; for a
	// directory 2 + its subdirectories.
	Nlink uint32
	// Children are a directory's names, sorted by Name bytewise, without "." and "..".
	Children []Child
}

// Child is a name in a directory.
type Child struct {
	Name string
	Node *Node
}
