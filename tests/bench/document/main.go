// Command document writes the documents about the benchmarks. Each template NAME.md.tmpl beside the
// measurements becomes NAME.md, with the tables and charts that the template names, so that no
// number is ever written by hand: 'make benchmark-docs'.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opensandbox/operator/tests/bench/results"
)

// chartFolder is where the charts are, seen from the documents.
const chartFolder = "benchmarks"

func main() {
	templates := flag.String("templates", "docs/benchmarks", "Folder with the templates, *.md.tmpl.")
	measured := flag.String("measured", "docs/benchmarks", "Folder with what was measured, *.json.")
	to := flag.String("to", "docs", "Folder to write the documents to, and the charts to its folder "+chartFolder+".")
	flag.Parse()
	if err := write(*templates, *measured, *to); err != nil {
		fmt.Fprintln(os.Stderr, "document:", err)
		os.Exit(1)
	}
}

// write writes all documents and charts. Charts of earlier runs whose tables are gone go, too.
func write(templates, measured, to string) error {
	files, err := filepath.Glob(filepath.Join(measured, "*.json"))
	if err != nil {
		return fmt.Errorf("looking for measurements: %w", err)
	}
	document, err := results.Read(files...)
	if err != nil {
		return err
	}
	w := newWriter(document)
	folder := filepath.Join(to, chartFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("making the folder of the charts: %w", err)
	}
	pages, err := filepath.Glob(filepath.Join(templates, "*.md.tmpl"))
	if err != nil || len(pages) == 0 {
		return fmt.Errorf("there is no template in %s: %w", templates, err)
	}
	for _, page := range pages {
		text, err := w.page(page)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, strings.TrimSuffix(filepath.Base(page), ".tmpl")), text, 0o644); err != nil {
			return fmt.Errorf("writing a document: %w", err)
		}
	}
	if err := w.nothingLeft(); err != nil {
		return err
	}
	return writeCharts(folder, w.drawn)
}

func writeCharts(folder string, drawn map[string][]byte) error {
	earlier, err := filepath.Glob(filepath.Join(folder, "*.svg"))
	if err != nil {
		return fmt.Errorf("looking for earlier charts: %w", err)
	}
	for _, file := range slices.DeleteFunc(earlier, func(file string) bool { return drawn[filepath.Base(file)] != nil }) {
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("removing a chart of an earlier run: %w", err)
		}
	}
	for name, svg := range drawn {
		if err := os.WriteFile(filepath.Join(folder, name), svg, 0o644); err != nil {
			return fmt.Errorf("writing a chart: %w", err)
		}
	}
	return nil
}
