package images

import v1 "github.com/google/go-containerregistry/pkg/v1"

// Size is what a full pull fetches: manifest, config and layers, in bytes.
func Size(img v1.Image) (int64, error) {
	size, err := img.Size()
	if err != nil {
		return 0, err
	}
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	size += m.Config.Size
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, nil
}
