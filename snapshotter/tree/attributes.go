package tree

import (
	"maps"
	"math"
	"strings"
	"time"

	"github.com/apparate/apparate/snapshotter/toc"
)

// The mark of a directory that hides lower ones (Linux,
// Documentation/filesystems/overlayfs.rst, "Whiteouts and opaque directories").
const (
	opaqueXattr = "trusted.overlay.opaque"
	opaqueValue = "y"
)

// Names of extended attributes (xattr(7)).
const (
	xattrUser       = "user."
	xattrSecurity   = "security."
	xattrACLAccess  = "system.posix_acl_access"
	xattrACLDefault = "system.posix_acl_default"
)

// setAttributes gives n the attributes of e.
func setAttributes(n *Node, e *toc.Entry) {
	n.Mode, n.UID, n.GID = e.Mode, e.UID, e.GID
	if n.Type == toc.Symlink {
		n.Mode = symlinkMode
	}
	n.Xattrs = settable(n.Type, e.Xattrs)
	setTime(n, e)
}

// setTime gives n the time of e, 0 where containerd would refuse it.
func setTime(n *Node, e *toc.Entry) {
	n.Sec, n.Nsec = e.Sec, e.Nsec
	latest := time.Unix(0, math.MaxInt64)
	if n.Sec < 0 || time.Unix(n.Sec, int64(n.Nsec)).After(latest) {
		n.Sec, n.Nsec = 0, 0
	}
}

// settable returns those of the extended attributes that unpacking would set on
// a file of a type; all itself when that is all.
func settable(t toc.Type, all map[string][]byte) map[string][]byte {
	drop := 0
	for name := range all {
		if !isSettable(t, name) {
			drop++
		}
	}
	if drop == 0 {
		return all
	}
	if drop == len(all) {
		return nil
	}
	some := make(map[string][]byte, len(all)-drop)
	for name, value := range all {
		if isSettable(t, name) {
			some[name] = value
		}
	}
	return some
}

// isSettable says whether a file of a type can have an extended attribute that
// comes from a layer.
func isSettable(t toc.Type, name string) bool {
	switch {
	case name == xattrACLAccess:
		return t != toc.Symlink
	case name == xattrACLDefault:
		return t == toc.Dir
	case strings.HasPrefix(name, xattrUser):
		return len(name) > len(xattrUser) && (t == toc.Reg || t == toc.Dir)
	case strings.HasPrefix(name, xattrSecurity):
		return len(name) > len(xattrSecurity)
	}
	return false
}

// union returns the extended attributes of a and b, those of b where both have
// one. It changes neither: both may be shared.
func union(a, b map[string][]byte) map[string][]byte {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	both := make(map[string][]byte, len(a)+len(b))
	maps.Copy(both, a)
	maps.Copy(both, b)
	return both
}
