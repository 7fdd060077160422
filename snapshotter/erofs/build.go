// Package erofs writes the metadata of a merged tree as an EROFS image: inodes,
// names, symlinks and extended attributes. The contents of files stay on other
// devices, one for each layer, to which the image points.
//
// The kernel mounts it with one data device for each layer, in their order:
//
//	mount("image", dir, "erofs", MS_RDONLY, "device=/layer0,device=/layer1")
//
// The same tree always makes the same bytes. Inode numbers and the UUID follow
// from them, so that overlayfs finds its way back after a restart.
//
// What is used of the format works since Linux 5.16, the first with data on
// several devices: 4 KiB blocks, extended inodes (64 bytes), one chunk for each
// file, inline directories and symlinks, no compression, nothing shared.
package erofs

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// Build returns the image of the tree under root, a multiple of 4096 bytes.
// devices are the lengths of the data devices in bytes, multiples of 4096: the
// content of a file is on devices[Node.Device], from Node.Addr.
//
// The tree is checked, not trusted: names must be sorted and valid, contents
// lie on their devices, directories have one name. An extended attribute whose
// prefix EROFS does not know is an error; tree.Merge lets none through. Errors
// wrap toc.ErrHostile, toc.ErrLimit or toc.ErrUnsupported.
func Build(root *tree.Node, devices []int64) ([]byte, error) {
	if len(devices) > maxDevices {
		return nil, &toc.Error{Kind: toc.ErrLimit, What: fmt.Sprintf("%d devices, the limit is %d", len(devices), maxDevices)}
	}
	for i, n := range devices {
		if n < 0 || n%blockSize != 0 || n/blockSize > maxDeviceBlocks {
			return nil, &toc.Error{Kind: toc.ErrLimit, What: fmt.Sprintf("device %d has %d bytes, not up to %d blocks of %d", i, n, maxDeviceBlocks, blockSize)}
		}
	}
	b := &builder{devices: devices}
	if err := b.collect(root); err != nil {
		return nil, err
	}
	if err := b.place(); err != nil {
		return nil, err
	}
	return b.write(), nil
}

// write returns the image.
func (b *builder) write() []byte {
	img := make([]byte, b.end)
	super{
		rootNid: uint16(b.nid(0)), // the first inode, in the first block that counts
		inodes:  uint64(len(b.inodes)), blocks: uint32(b.end / blockSize),
		metaBlock: uint32(b.meta / blockSize), devices: uint16(len(b.devices)),
	}.put(img[superOffset:])
	for i, n := range b.devices {
		slot := img[(firstDeviceSlot+i)*deviceSlotSize:]
		copy(slot[:deviceTagSize], fmt.Sprintf("layer-%d", i))
		binary.LittleEndian.PutUint32(slot[deviceTagSize:], uint32(n/blockSize))
	}
	for i := range b.inodes {
		b.writeInode(img, i)
	}
	seal(img)
	return img
}

// nid is the number that the kernel knows an inode by.
func (b *builder) nid(i int32) uint64 {
	return uint64(b.inodes[i].at-b.meta) / slotSize
}

// writeInode writes inode i and its data.
func (b *builder) writeInode(img []byte, i int) {
	in := &b.inodes[i]
	n := in.node
	data := in.block
	switch n.Type {
	case toc.Reg:
		if in.layout == layoutChunked {
			data = uint32(chunkBits(n.Size)) | chunkIndexes
		}
	case toc.Char, toc.Block:
		data = encodeDev(n.DevMajor, n.DevMinor)
	case toc.Fifo:
		data = 0
	default: // directories and symlinks: their first block
	}
	putInode(img[in.at:], n, uint32(i+1), in.layout, uint64(in.size), xattrWords(int(in.xattrs)), data)
	body := in.at + inodeSize
	if in.xattrs > 0 {
		putXattrs(img[body:], n.Xattrs)
		body += int64(in.xattrs)
	}
	switch n.Type {
	case toc.Reg:
		if in.layout == layoutChunked {
			b.writeIndexes(img[align(body, chunkIndexSize):], n)
		}
	case toc.Symlink:
		copy(b.lastBlock(img, in, body), n.Link)
	case toc.Dir:
		b.writeDir(img, in, body)
	default: // nothing but an inode
	}
}

// writeIndexes writes where the chunks of a file are.
func (b *builder) writeIndexes(p []byte, n *tree.Node) {
	for c := range chunks(n.Size) {
		block := n.Addr/blockSize + c<<chunkBits(n.Size)
		putChunkIndex(p[c*chunkIndexSize:], uint16(n.Device+1), uint32(block))
	}
}

// lastBlock returns where the last block's bytes of an inode go; tail is the
// place behind the inode.
func (b *builder) lastBlock(img []byte, in *inode, tail int64) []byte {
	if in.layout == layoutInline {
		return img[tail : tail+int64(in.tail)]
	}
	last := (int64(in.block) + int64(in.blocks) - 1) * blockSize
	return img[last : last+blockSize]
}

// writeDir writes the blocks of a directory. Each has its entries first, then
// their names; the kernel finds a name by bisection in it and between blocks.
func (b *builder) writeDir(img []byte, in *inode, tail int64) {
	list := b.list(in)
	for at := int64(in.block) * blockSize; ; at += blockSize {
		count, _ := fill(list)
		var out []byte
		if count == len(list) {
			out = b.lastBlock(img, in, tail)
		} else {
			out = img[at : at+blockSize]
		}
		name := count * direntSize
		for i, d := range list[:count] {
			_, fileType := typeOf(b.inodes[d.to].node.Type)
			putDirent(out[i*direntSize:], b.nid(d.to), name, fileType)
			name += copy(out[name:], d.name)
		}
		if list = list[count:]; len(list) == 0 {
			return
		}
	}
}

// seal writes the UUID, which is a digest of the rest, and the checksum.
func seal(img []byte) {
	sb := img[superOffset : superOffset+superSize]
	sum := sha256.Sum256(img)
	uuid := sb[uuidOffset : uuidOffset+uuidSize]
	copy(uuid, sum[:])
	// RFC 9562: version 8, a number made in an own way.
	uuid[6], uuid[8] = uuid[6]&0x0f|0x80, uuid[8]&0x3f|0x80
	// The kernel's crc32c is not inverted at the end.
	crc := ^crc32.Checksum(img[superOffset:blockSize], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(sb[checksumOffset:], crc)
}
