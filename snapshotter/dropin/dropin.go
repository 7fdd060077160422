// Package dropin works out the configuration with which containerd uses our
// snapshotter: one import in its main file, and the imported file, the drop-in.
// It knows containerd 1.4 to 2.x, and k3s and rke2, which write containerd's main
// file themselves from templates.
//
// All of it is computation on bytes, except Read. Who calls it writes the files,
// asks containerd for `config dump` of the result, calls Verify, and only then
// restarts containerd.
//
// A drop-in must be written with mode 0600: for containerd 1.x it carries a copy
// of the whole CRI section, in which there may be passwords of registries.
package dropin

// Input describes the containerd of a host.
type Input struct {
	// Main is the main configuration file as it is on disk; nil: there is none.
	Main []byte
	// MainPath is where it is, e.g. /etc/containerd/config.toml.
	MainPath string
	// Imported are the files that Main imports, directly or not, in the order in
	// which containerd reads them, without our own; see Read.
	Imported []File
	// Dump is what `containerd --config MainPath config dump` prints. An earlier
	// drop-in of ours may be in it. Where there is no main file it is the output
	// of `containerd config default`.
	Dump []byte
	// Version is containerd's version: "1.4.13", "v2.4.2", "1.6.20~ds1",
	// "1.7.27-k3s1", or the whole line that `containerd --version` prints.
	Version string
	// Glob is what Main is to import, e.g. /run/apparate/containerd/*.toml.
	Glob string
	// Socket is the absolute path of the snapshotter's socket.
	Socket string
	// Root is the directory of snapshots and cache, for containerd's figures.
	Root string
	// Name is the name of proxy plugin and snapshotter, "apparate".
	Name string
}

// File is a configuration file.
type File struct {
	Path string
	Data []byte
}

// Plan is what to write.
type Plan struct {
	// Main is the new main file: the old bytes and the import.
	Main []byte
	// DropIn makes our snapshotter the default. Mode 0600: see the package.
	DropIn []byte
	// Drain only names the snapshotter, so that containers which still use it can
	// be deleted; the default is what it was before.
	Drain []byte
	// Original is the default snapshotter without us, e.g. "overlayfs".
	Original string
	// Changes says in lines for people what becomes different, and what stays
	// although one might think otherwise.
	Changes []string
}
