// Package tree merges the layers of a lazily mounted image into one directory
// tree, as overlayfs would show them: whiteouts, opaque directories, hard links.
//
// The measure is what a node without us would show: containerd unpacks each
// layer into a directory of its own (its package pkg/archive, as of v2.4.2) and
// the kernel stacks these with overlayfs. Where that is well defined, Merge
// does the same, also where the OCI image specification would have it
// otherwise, because an image must not change when it is accelerated:
//
//   - Entries take effect in the order of the layer. A later entry of the same
//     path replaces an earlier one; a directory over a directory keeps what is
//     in it, takes the new attributes and adds the new extended attributes.
//   - A directory over a directory of a lower layer shows both contents and the
//     upper attributes. Any other replacement hides all that was there.
//   - Entries for the root are ignored, but for the time: the root of a snapshot
//     is made by the snapshotter, 0755 and owned by root. An opaque marker in
//     the root is without effect too, as overlayfs ignores it there.
//   - A parent that the layer does not list has the attributes of the lower
//     directory if there is one, else 0755, root, and the time 0.
//   - A hard link's own attributes are those that the inode gets last. A mode of
//     0 says that the writer left them out.
//   - A character device 0:0 is a whiteout.
//   - Times before 1970 or after 2262 become 0. The mode of a symlink is 0777.
//   - Extended attributes of "trusted." are dropped, above all those of
//     overlayfs, which would let a layer reach into others; so are those that
//     Linux would refuse ("user." on what is neither file nor directory, unknown
//     prefixes). "user.overlay." stays: it means nothing without the mount option
//     userxattr, which file systems of our kind, not mountable in a user
//     namespace, never get.
//
// It differs where an ordinary unpack fails or depends on the clock:
//
//   - A whiteout beside an entry of the same name in one layer: the entry wins,
//     whichever comes first (unpacking fails if the entry does).
//   - A hard link may lead to a file of a lower layer; both names then are one
//     file (unpacking fails).
//   - A path that passes a symlink of the same layer is refused with
//     toc.ErrUnsupported; unpacking would follow the symlink. One that passes a
//     symlink of a lower layer replaces it by a directory, as unpacking does.
//   - Times of directories that the layer does not list: unpacking leaves the
//     time of unpacking.
//   - An unlisted parent where the lower layer has a symlink: unpacking copies
//     the attributes of what the symlink leads to in that layer.
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
	// Nlink is the link count that stat shows. Of a file: the names it has in the
	// layer it comes from, also those that upper layers hide, as overlayfs shows it,
	// and the hard links of upper layers. Of a directory: 2 + its subdirectories.
	Nlink uint32
	// Children are a directory's names, sorted by Name bytewise, without "." and "..".
	Children []Child
}

// Child is a name in a directory.
type Child struct {
	Name string
	Node *Node
}
