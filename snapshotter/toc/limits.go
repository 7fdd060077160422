package toc

// What we accept from a TOC. A layer beyond these is pulled in the ordinary
// way: each bound is far above real images and keeps a hostile one from using
// up the node's memory, or is what the kernel or EROFS can express.
const (
	maxCompressedTOC = 256 << 20 // bytes of the TOC in the blob
	maxJSON          = 1 << 30   // bytes of the JSON; it is streamed, never held whole
	maxEntries       = 1 << 20   // entries and chunks; some 130 bytes of memory each
	maxText          = 128 << 20 // bytes of all names, targets and extended attributes
	maxPath          = 4096      // bytes of a path, PATH_MAX
	maxName          = 255       // bytes of a path's element, NAME_MAX
	maxSymlink       = 4095      // bytes of a symlink's target, PATH_MAX without its NUL
	maxID            = 1<<32 - 2 // uid and gid; 1<<32-1 is the kernel's "no id"
	maxDevMajor      = 1<<12 - 1 // Linux dev_t: 12 bits major,
	maxDevMinor      = 1<<20 - 1 // 20 bits minor

	maxXattrs     = 1024        // extended attributes of one entry
	maxXattrName  = 255         // bytes, XATTR_NAME_MAX
	maxXattrValue = 1<<16 - 1   // bytes; EROFS counts them in 16 bits
	maxXattrTotal = 4 * 0xff00  // bytes of an inode's; EROFS counts words in 16 bits, some are ours
	xattrOverhead = 4 + (4 - 1) // bytes that EROFS adds to a name and value at most

	maxFile  = 1 << 46  // bytes of a file
	maxChunk = 64 << 20 // bytes of a chunk, which is verified in memory
	// maxMember bounds the decompressed length of a member up to the end of its
	// last chunk: what has to be inflated for a chunk at its end.
	maxMember = 128 << 20
	// maxData keeps block numbers below 1<<32-1, which EROFS takes for a hole.
	maxData = (1<<32 - 2) * BlockSize

	maxString = 2 << 20 // bytes of a JSON string as written, escapes included
	maxDepth  = 64      // nesting of JSON values
)
