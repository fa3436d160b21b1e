"""As much of kustomize as the overlays use. A field that is not known here is an error, so that nothing is passed over."""

import copy

import jsonpatch
import yaml

FIELDS = {"apiVersion", "kind", "namespace", "labels", "resources", "components", "patches", "configMapGenerator"}


def load(path, seen):
    seen.add(path)
    return list(filter(None, yaml.safe_load_all(path.read_text())))


def patch(documents, change):
    assert change.keys() == {"target", "patch"} and change["target"].keys() == {"kind", "name"}, change
    hit = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (change["target"]["kind"], change["target"]["name"])]
    assert hit, f"nothing is patched by {change['target']}"
    for document in hit:
        changed = jsonpatch.apply_patch(copy.deepcopy(document), yaml.safe_load(change["patch"]))
        document.clear()
        document.update(changed)


def render(folder, seen, documents=None):
    """The documents of a kustomization, or with `documents` what a component makes of them. Adds every file that was read to `seen`."""
    (rules,) = load(folder / "kustomization.yaml", seen)
    assert rules.keys() <= FIELDS, f"{folder}: this renderer does not know {rules.keys() - FIELDS}"
    documents = [] if documents is None else documents
    for name in rules.get("resources", []):
        path = (folder / name).resolve()
        documents += render(path, seen) if path.is_dir() else load(path, seen)
    for made in rules.get("configMapGenerator", []):
        assert made.keys() <= {"name", "files", "options"} and made.get("options", {}).keys() <= {"disableNameSuffixHash"}, made
        data = {name.rsplit("/", 1)[-1]: (folder / name).read_text() for name in made["files"]}
        seen.update(folder / name for name in made["files"])
        documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    for name in rules.get("components", []):
        render((folder / name).resolve(), seen, documents)
    for change in rules.get("patches", []):
        patch(documents, change)
    for labels in rules.get("labels", []):
        assert labels.keys() == {"pairs"}, labels
        for document in documents:
            document["metadata"]["labels"] = document["metadata"].get("labels", {}) | labels["pairs"]
    if "namespace" in rules:
        for document in documents:
            document["metadata"]["namespace"] = rules["namespace"]
    return documents
