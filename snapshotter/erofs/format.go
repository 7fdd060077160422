package erofs

import (
	"encoding/binary"

	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// The on-disk format, all numbers little-endian. Names follow the structures of
// Linux, fs/erofs/erofs_fs.h, which is also the source of every value here.
const (
	superOffset = 1024       // EROFS_SUPER_OFFSET
	superSize   = 128        // sizeof(struct erofs_super_block)
	superMagic  = 0xe0f5e1e2 // EROFS_SUPER_MAGIC_V1 (include/uapi/linux/magic.h)

	compatChecksum = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	compatMtime    = 0x2 // EROFS_FEATURE_COMPAT_MTIME: times of inodes are modification times

	incompatChunked = 0x4 // EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
	incompatDevices = 0x8 // EROFS_FEATURE_INCOMPAT_DEVICE_TABLE

	deviceSlotSize   = 128 // sizeof(struct erofs_deviceslot)
	deviceTagSize    = 64
	firstDeviceSlot  = (superOffset + superSize) / deviceSlotSize
	maxDevices       = 1<<16 - 1 // device numbers have 16 bits, 0 is the image itself
	maxDeviceBlocks  = 1<<32 - 2 // block numbers have 32 bits, 1<<32-1 is a hole
	noBlock          = 1<<32 - 1 // EROFS_NULL_ADDR
	maxImageBlocks   = 1 << 19   // of our own: 2 GiB of metadata
	blockSize        = toc.BlockSize
	blockBits        = 12
	slotSize         = 32 // inodes are numbered (nid) in units of it
	inodeSize        = 64 // sizeof(struct erofs_inode_extended)
	versionExtended  = 1  // EROFS_INODE_LAYOUT_EXTENDED, bit 0 of i_format
	layoutPlain      = 0  // EROFS_INODE_FLAT_PLAIN, from bit 1 of i_format
	layoutInline     = 2  // EROFS_INODE_FLAT_INLINE: the last block follows the inode
	layoutChunked    = 4  // EROFS_INODE_CHUNK_BASED
	layoutShift      = 1
	chunkIndexes     = 0x20 // EROFS_CHUNK_FORMAT_INDEXES: the index names a device
	maxChunkBits     = 31   // EROFS_CHUNK_FORMAT_BLKBITS_MASK: chunks of 1<<n blocks
	chunkIndexSize   = 8    // sizeof(struct erofs_inode_chunk_index)
	direntSize       = 12   // sizeof(struct erofs_dirent)
	maxNameLen       = 255  // EROFS_NAME_LEN
	maxNsec          = 1e9
	maxMode          = 0o7777
	maxDevMajor      = 1<<12 - 1 // Linux dev_t
	maxDevMinor      = 1<<20 - 1
	maxSymlinkLength = blockSize - 1 // PATH_MAX without its NUL
)

// typeOf returns the file type bits of a mode (stat(2)) and the type in a
// directory entry (Linux, include/linux/fs_types.h, FT_*); zeros for none.
func typeOf(t toc.Type) (mode uint16, dirent byte) {
	switch t {
	case toc.Reg:
		return 0o100000, 1
	case toc.Dir:
		return 0o040000, 2
	case toc.Char:
		return 0o020000, 3
	case toc.Block:
		return 0o060000, 4
	case toc.Fifo:
		return 0o010000, 5
	case toc.Symlink:
		return 0o120000, 7
	default:
		return 0, 0
	}
}

// encodeDev returns a device number as inodes hold it (Linux,
// include/linux/kdev_t.h, new_encode_dev).
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// putInode writes a struct erofs_inode_extended. The union i_u is data: a block,
// a device or a chunk format.
func putInode(p []byte, n *tree.Node, number uint32, layout uint16, size uint64, xattrWords uint16, data uint32) {
	mode, _ := typeOf(n.Type)
	binary.LittleEndian.PutUint16(p[0:], versionExtended|layout<<layoutShift)
	binary.LittleEndian.PutUint16(p[2:], xattrWords)
	binary.LittleEndian.PutUint16(p[4:], mode|uint16(n.Mode))
	binary.LittleEndian.PutUint64(p[8:], size)
	binary.LittleEndian.PutUint32(p[16:], data)
	binary.LittleEndian.PutUint32(p[20:], number)
	binary.LittleEndian.PutUint32(p[24:], n.UID)
	binary.LittleEndian.PutUint32(p[28:], n.GID)
	binary.LittleEndian.PutUint64(p[32:], uint64(n.Sec))
	binary.LittleEndian.PutUint32(p[40:], n.Nsec)
	binary.LittleEndian.PutUint32(p[44:], n.Nlink)
}

// putDirent writes a struct erofs_dirent; nameOffset counts from its block.
func putDirent(p []byte, nid uint64, nameOffset int, fileType byte) {
	binary.LittleEndian.PutUint64(p[0:], nid)
	binary.LittleEndian.PutUint16(p[8:], uint16(nameOffset))
	p[10] = fileType
}

// putChunkIndex writes a struct erofs_inode_chunk_index.
func putChunkIndex(p []byte, device uint16, block uint32) {
	binary.LittleEndian.PutUint16(p[2:], device)
	binary.LittleEndian.PutUint32(p[4:], block)
}

// super is what we set of a struct erofs_super_block.
type super struct {
	rootNid   uint16
	inodes    uint64
	blocks    uint32
	metaBlock uint32
	devices   uint16
}

// put writes the superblock but for its checksum and UUID.
func (s super) put(p []byte) {
	binary.LittleEndian.PutUint32(p[0:], superMagic)
	binary.LittleEndian.PutUint32(p[8:], compatChecksum|compatMtime)
	p[12] = blockBits
	binary.LittleEndian.PutUint16(p[14:], s.rootNid)
	binary.LittleEndian.PutUint64(p[16:], s.inodes)
	binary.LittleEndian.PutUint32(p[36:], s.blocks)
	binary.LittleEndian.PutUint32(p[40:], s.metaBlock)
	copy(p[64:80], "apparate")
	incompat := uint32(incompatChunked)
	if s.devices > 0 {
		incompat |= incompatDevices
		binary.LittleEndian.PutUint16(p[86:], s.devices)
		binary.LittleEndian.PutUint16(p[88:], firstDeviceSlot)
	}
	binary.LittleEndian.PutUint32(p[80:], incompat)
}

// Where the fields that seal writes are in the superblock.
const (
	checksumOffset = 4
	uuidOffset     = 48
	uuidSize       = 16
)
