package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Binary says how to make an image of one static program.
type Binary struct {
	// Path is the program on this machine.
	Path string
	// Entrypoint is its path in the image.
	Entrypoint string
	// User is the user that it runs as, by number.
	User string
	// Launcher is the path of a second copy, where there is one. The first can be executed
	// then, and read by nobody but root: see the Dockerfile.
	Launcher string
}

const passwd = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"

// FromBinary makes an image with one static program, /tmp and /etc/passwd in it.
// The same program gives the same image.
func FromBinary(b Binary) (v1.Image, error) {
	if err := checkStatic(b.Path); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(b.Path)
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	archive := tar.NewWriter(&content)
	type entry struct {
		name string
		mode int64
		data []byte
	}
	inImage := func(file string) string { return strings.TrimPrefix(path.Clean(file), "/") }
	files := []entry{
		{"tmp/", 0o1777, nil},
		{"etc/", 0o755, nil},
		{"etc/passwd", 0o644, []byte(passwd)},
	}
	if b.Launcher == "" {
		files = append(files, entry{inImage(b.Entrypoint), 0o755, program})
	} else {
		files = append(files, entry{inImage(b.Entrypoint), 0o711, program}, entry{inImage(b.Launcher), 0o755, program})
	}
	for _, file := range files {
		header := &tar.Header{Name: file.name, Mode: file.mode, Size: int64(len(file.data)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(file.name, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := archive.Write(file.data); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{Entrypoint: []string{b.Entrypoint}, User: b.User}, layer)
}

// assemble puts layers and configuration together for this machine's architecture.
func assemble(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	if len(config.Env) == 0 {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	config.WorkingDir = "/"
	file.Config = config
	return mutate.ConfigFile(img, file)
}

// checkStatic refuses a program that needs a dynamic linker: it would fail in the
// image with a puzzling "no such file or directory".
func checkStatic(file string) error {
	program, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s is not a Linux program: %w", file, err)
	}
	defer program.Close()
	for _, header := range program.Progs {
		if header.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked and would not run in an image of its own: build it with CGO_ENABLED=0", file)
		}
	}
	return nil
}
