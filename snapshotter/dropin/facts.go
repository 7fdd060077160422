package dropin

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Facts is what the node needs to know of a containerd.
type Facts struct {
	// Version is the version of the configuration in which the dump is: 2, 3 or 4.
	Version int
	// Root, State and Address are containerd's directories and gRPC socket.
	Root, State, Address string
	// Snapshotter is the default snapshotter of CRI.
	Snapshotter string
	// RegistryDirs are the directories with a hosts.toml for each registry, in the
	// order in which they are looked into.
	RegistryDirs []string
	// SandboxImage is the pause image, "" where the dump has none.
	SandboxImage string
	// DiscardUnpackedLayers: CRI lets layers go once they are unpacked.
	DiscardUnpackedLayers bool
	// TransferService: CRI pulls by the transfer service, not by the client.
	TransferService bool
	// Proxies are the addresses of proxy plugins by name.
	Proxies map[string]string
}

// ReadFacts reads what `containerd config dump` printed.
func ReadFacts(dump []byte) (Facts, error) {
	t, err := parse("containerd config dump", dump)
	if err != nil {
		return Facts{}, err
	}
	return factsOf(t)
}

// SandboxImage returns the pause image of a dump: CRI needs it for every pod.
func SandboxImage(dump []byte) (string, error) {
	f, err := ReadFacts(dump)
	if err == nil && f.SandboxImage == "" {
		err = fmt.Errorf("containerd config dump names no pause image: set sandbox_image or pinned_images.sandbox of CRI")
	}
	return f.SandboxImage, err
}

// factsOf reads a decoded dump: with version 2 from containerd 1.x, with 3 or 4
// from 2.x.
func factsOf(t tree) (Facts, error) {
	f := Facts{
		Version: t.version(), Root: t.text("root"), State: t.text("state"), Address: t.text("grpc", "address"),
		Proxies: map[string]string{},
	}
	if a := t.text("plugins", grpcV4, "address"); a != "" {
		f.Address = a
	}
	for name := range t.table("proxy_plugins") {
		f.Proxies[name] = t.text("proxy_plugins", name, "address")
	}
	var registry tree
	if images := t.table("plugins", imagesV3); images != nil {
		f.Snapshotter = images.text("snapshotter")
		f.SandboxImage = images.text("pinned_images", "sandbox")
		f.DiscardUnpackedLayers = images.on("discard_unpacked_layers")
		f.TransferService = transferService(images)
		registry = images.table("registry")
	} else if cri := t.table("plugins", criV2); cri != nil {
		f.Snapshotter = cri.text("containerd", "snapshotter")
		f.SandboxImage = cri.text("sandbox_image")
		f.DiscardUnpackedLayers = cri.on("containerd", "discard_unpacked_layers")
		registry = cri.table("registry")
	} else {
		return f, fmt.Errorf("containerd config dump has no CRI plugin: kubelet cannot use this containerd, enable CRI first")
	}
	f.RegistryDirs = filepath.SplitList(registry.text("config_path"))
	if f.Version > 2 && len(f.RegistryDirs) == 0 && len(registry.table("mirrors")) == 0 {
		// What containerd 2.1 and later fill in after the dump.
		f.RegistryDirs = []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}
	}
	return f, nil
}

// transferService says whether CRI with these image settings pulls by the transfer
// service: containerd 2.1 and later do, unless a setting forbids it (what
// CheckLocalImagePullConfigs of containerd's internal/cri/config lists).
func transferService(images tree) bool {
	if images["use_local_image_pull"] != false {
		return false // true, or absent: containerd 2.0
	}
	for _, key := range []string{"mirrors", "configs", "auths"} {
		if len(images.table("registry", key)) > 0 {
			return false
		}
	}
	return images.on("disable_snapshot_annotations") && !images.on("discard_unpacked_layers") &&
		!images.on("image_pull_with_sync_fs") && images["max_concurrent_downloads"] == int64(3)
}

// explain fills in Plan.Changes.
func (b *builder) explain() {
	in, p := &b.in, &b.plan
	say := func(format string, args ...any) { p.Changes = append(p.Changes, fmt.Sprintf(format, args...)) }
	switch {
	case in.Main == nil:
		say("%s is created, with one import; containerd ran on its defaults", in.MainPath)
	case string(in.Main) == string(p.Main):
		say("%s imports %s already", in.MainPath, in.Glob)
	default:
		say("%s imports %s", in.MainPath, in.Glob)
	}
	say("the default snapshotter is %s instead of %s", in.Name, p.Original)
	if !slices.Contains(built, p.Original) {
		say("%s, the default so far, stays as a proxy plugin: its containers go on, images are unpacked anew for %s", p.Original, in.Name)
	}
	if b.local {
		say("disable_snapshot_annotations is false, so that the snapshotter is told of which image a layer is")
	} else {
		say("images are pulled by the transfer service as before; its unpack_config gets %s", in.Name)
	}
	f, err := factsOf(b.dump)
	if err == nil && f.DiscardUnpackedLayers {
		say("discard_unpacked_layers stays true: images of which layers were discarded are pulled again")
	}
	if address, ok := f.Proxies[in.Name]; err == nil && ok && address != in.Socket {
		say("the proxy plugin %s is at %s instead of %s", in.Name, in.Socket, address)
	}
	runtimes := b.dump.table("plugins", criV2, "containerd", "runtimes")
	if r := b.dump.table("plugins", runtimeV3, "containerd", "runtimes"); r != nil {
		runtimes = r
	}
	var own []string
	for name := range runtimes {
		if s := runtimes.text(name, "snapshotter"); s != "" {
			own = append(own, name+" ("+s+")")
		}
	}
	if slices.Sort(own); len(own) > 0 {
		say("runtimes with a snapshotter of their own keep it: %s", strings.Join(own, ", "))
		if b.release.atLeast(2, 0, 0) && !b.release.atLeast(2, 3, 0) && b.files[0].tree.version() < 3 {
			say("containerd %s does not pull for the snapshotter of a runtime that a file of version 1 or 2 names: runtime_platforms in a file of version 3 does", b.release)
		}
	}
	p.Changes = append(p.Changes, b.notes...)
}
