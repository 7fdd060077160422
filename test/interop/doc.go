// Package interop shows that our images are ordinary eStargz: what we converted is
// read by stargz-snapshotter's estargz package and mounted by its file system, and
// is the tree that containerd unpacks. Images that its estargz package built are
// mounted by us in test/tree.
//
// It is a module of its own, so that the peer is never a dependency of ours, and
// because the peer does not build with our version of go-fuse. Our own FUSE file
// system is linked into these tests, but would not work with the older one.
package interop
