package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/link"
)

// parentMode is that of folders that are made for a file.
const parentMode = 0o755

// writeFiles writes the files of a task, as the user that tasks run as. It stops at the first
// that cannot be written.
func writeFiles(files []api.File) *link.Failure {
	for i := range files {
		if err := writeFile(&files[i]); err != nil {
			var number unix.Errno
			if errors.As(err, &number) {
				err = number // without the name of the file beside it
			}
			return &link.Failure{Code: codeCannotStart, Reason: api.ReasonFileUnwritable, Message: fmt.Sprintf("file %q: %v", files[i].Path, err)}
		}
	}
	return nil
}

// writeFile writes a file beside its place and then puts it there, so that nobody sees a
// part of it, and what was there stays if it cannot be written.
func writeFile(f *api.File) error {
	dir := filepath.Dir(f.Path)
	if err := os.MkdirAll(dir, parentMode); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".opensandbox-*")
	if err != nil {
		return err
	}
	_, err = file.Write(f.Content)
	if err == nil {
		err = file.Chmod(os.FileMode(f.Mode))
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), f.Path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}
	return err
}
