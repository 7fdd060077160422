package dropin

import "errors"

var errNotYet = errors.New("not written yet")

// Read returns the main file at path, nil where there is none, and the files it
// imports in the order in which containerd of that version reads them, without
// those that glob matches.
func Read(path, version, glob string) (main []byte, imported []File, err error) {
	return nil, nil, errNotYet
}

// Make plans the configuration of in. Nothing is to be changed after an error.
func Make(in Input) (Plan, error) { return Plan{}, errNotYet }

// Verify compares the dumps of before and after, the candidate with Plan.DropIn:
// ours is the default and can work, and nothing else changed.
func Verify(before, after []byte, in Input) error { return errNotYet }

// VerifyDrain is Verify for the candidate with Plan.Drain.
func VerifyDrain(before, after []byte, in Input, original string) error { return errNotYet }

// Restore returns current, the main file (or template) of now, without our import.
// original and applied are what it was before us and what we wrote (Plan.Main, or
// Template.Before and After); where current is applied the answer is original to
// the byte. nil means that the file is to be removed.
func Restore(current, original, applied []byte, glob string) ([]byte, error) {
	return nil, errNotYet
}

// K3s describes how k3s or rke2 configures its containerd.
type K3s struct {
	// Dir is e.g. /var/lib/rancher/k3s/agent/etc/containerd.
	Dir string
	// Rendered is config.toml in Dir, which k3s writes at each start.
	Rendered []byte
	// V2 and V3 are config.toml.tmpl and config-v3.toml.tmpl in Dir; nil: absent.
	V2, V3 []byte
	// Containerd is the version of containerd, Version that of k3s or rke2.
	Containerd, Version string
	// Glob is what is to be imported.
	Glob string
}

// Template is the file of k3s or rke2 to change, in place of the main file.
type Template struct {
	// Path is the file; its directory may have to be made.
	Path string
	// Before is what is there now, nil for nothing; After is what to write.
	Before, After []byte
	// Rendered is what config.toml will be, to be given to Verify's dump.
	Rendered []byte
}

// Plan says which file makes k3s's containerd import Glob.
func (k K3s) Plan() (Template, error) { return Template{}, errNotYet }

// Facts is what the node needs to know of a containerd.
type Facts struct {
	// Version is the version of the configuration that was dumped: 2, 3 or 4.
	Version int
	// Root, State and Address are containerd's directories and gRPC socket.
	Root, State, Address string
	// Snapshotter is the default snapshotter of CRI.
	Snapshotter string
	// RegistryDirs are the directories of hosts.toml files, in order.
	RegistryDirs []string
	// SandboxImage is the pause image.
	SandboxImage string
	// DiscardUnpackedLayers: CRI lets layers go once they are unpacked.
	DiscardUnpackedLayers bool
	// TransferService: CRI pulls by the transfer service, not by the client.
	TransferService bool
}

// ReadFacts reads a dump.
func ReadFacts(dump []byte) (Facts, error) { return Facts{}, errNotYet }

// SandboxImage is the pause image of a dump.
func SandboxImage(dump []byte) (string, error) { return "", errNotYet }
