package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// SampleNames are the images that samples, demo and tests use.
var SampleNames = []string{nginxImage, ubuntuImage, busyboxImage}

const (
	nginxImage   = "nginx:latest"
	ubuntuImage  = "ubuntu:latest"
	busyboxImage = "busybox:latest"
)

// recipe is raised whenever this file changes how the images are made.
const recipe = "4"

// Samples makes the sample images of the packages of this machine's distribution
// (Debian or Ubuntu).
type Samples struct {
	Store Store
	// Work is a folder for root file systems and packages.
	Work string
	Out  io.Writer
}

// Stale lists the images that are missing or were made in another way. With force it lists
// all.
func (s *Samples) Stale(force bool) ([]string, error) {
	key, err := sampleKey()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(SampleNames), func(name string) bool {
		return !force && s.Store.Key(name) == key
	}), nil
}

// sampleKey depends on the distribution and not on the versions of its packages, because
// asking for these takes the network. The flag --force makes the images anew.
func sampleKey() (string, error) {
	release, err := codename()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{recipe, release, runtime.GOARCH}, "\n")))
	return hex.EncodeToString(sum[:8]), nil
}

// codename is the name of this machine's distribution release, for example
// bookworm.
func codename() (string, error) {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VERSION_CODENAME="); ok {
			return strings.Trim(value, "\"\n"), nil
		}
	}
	return "", fmt.Errorf("/etc/os-release names no VERSION_CODENAME: the sample images need Debian or Ubuntu")
}

// Make makes the named images.
func (s *Samples) Make(ctx context.Context, names []string) error {
	if err := os.MkdirAll(s.Work, 0o755); err != nil {
		return err
	}
	key, err := sampleKey()
	if err != nil {
		return err
	}
	w := &workshop{}
	if w.dir, err = os.MkdirTemp(s.Work, "samples-"); err != nil {
		return err
	}
	defer os.RemoveAll(w.dir)
	makers := map[string]func(context.Context) (v1.Image, error){
		busyboxImage: w.busybox,
		ubuntuImage:  w.ubuntu,
		nginxImage:   w.nginx,
	}
	for _, name := range names {
		fmt.Fprintf(s.Out, "making %s ... ", name)
		began := time.Now()
		img, err := makers[name](ctx)
		if err != nil {
			fmt.Fprintln(s.Out, "failed")
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := s.Store.Put(name, img, key); err != nil {
			return err
		}
		fmt.Fprintf(s.Out, "%.0f s\n", time.Since(began).Seconds())
	}
	return nil
}
