"""The page in a headless Chromium (`make browser` installs it): what a user does, from the first photo to the download.

FEWSEG_SCREENSHOTS names a folder for the screenshots of the docs, FEWSEG_SCREENSHOTS_CHECKPOINT the checkpoint that
they show, of photos of 128 x 128; without it the model has random weights.
"""

import base64
import io
import json
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewseg_ext
from fewseg_ext.web.limits import Limits
from fewseg_ext.web.server import make_app, temporary_folder
from fewseg_ext.web.session import Sessions
from test_segmenter import iou, photo_and_mask
from test_web_session import bomb

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Machines that run tests are busy.
WAIT = 120

pytest.importorskip("gradio", reason='the page needs gradio: pip install "fewseg-ext[web]"')
webdriver = pytest.importorskip("selenium.webdriver", reason="the browser's tests need selenium")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here: `make browser` installs them"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a page with a small model, served by a thread."""
    import uvicorn

    # Not inside the page's own folder, where tempfile would put it from here on.
    tmp_path_factory.getbasetemp()

    checkpoint = os.environ.get("FEWSEG_SCREENSHOTS_CHECKPOINT")
    if checkpoint:
        segmenter = fewseg_ext.Segmenter.from_checkpoint(checkpoint, size=128)
        about = "BiOpt as trained by fewseg demo; photos are seen at 128 x 128 pixels, on cpu."
    else:
        torch.manual_seed(0)
        segmenter = fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4", inner_lr=1.0), size=64)
        about = "A small model with random weights."
    with temporary_folder(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sessions, "grace_seconds", 1.0)
        app = make_app(segmenter, about, cookie="fewseg", token=None, limits=Limits(photos=8, megapixels=2))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def start_browser(width: int = 1280, height: int = 1000):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Without a sandbox: in a container there is none, and the only page is ours.
    flags = ["headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"]
    for flag in [*flags, f"window-size={width},{height}", "force-device-scale-factor=1"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    browser = start_browser()
    yield browser
    browser.quit()


@pytest.fixture
def user(browser, address: str) -> "User":
    return User(browser, address)


def wait_for(condition: Callable, seconds: float = WAIT):
    """What the condition gives, once it is true; what is not there yet, or was just replaced, counts as not yet."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        try:
            if result := condition():
                return result
        except (NoSuchElementException, StaleElementReferenceException):
            pass
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class User:
    """What can be done and seen on a freshly opened page."""

    def __init__(self, browser, address: str) -> None:
        self.browser = browser
        self.address = address
        self.open()

    def open(self) -> None:
        self.browser.get(self.address)
        self.wait_for_status("Add photos")

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    @property
    def status(self) -> str:
        return self.find("#status").text

    def wait_for_status(self, text: str) -> None:
        try:
            wait_for(lambda: text in self.status)
        except AssertionError:
            raise AssertionError(f"expected {text!r} on the page, there is {self.status!r}") from None

    def upload(self, *paths: Path) -> None:
        self.find("#files input[type=file]").send_keys("\n".join(map(str, paths)))

    def tool(self, name: str) -> None:
        self.find(f"#canvas input[value={name}]").click()

    def drag(self, *points: tuple[int, int]) -> None:
        """With the button held, from point to point, in pixels of the photo."""
        self._point(points[0]).click_and_hold().perform()
        for point in points[1:]:
            self._point(point).perform()
        self._actions().release().perform()

    def click(self, *points: tuple[int, int]) -> None:
        for point in points:
            self._point(point).click().perform()

    def _actions(self):
        return webdriver.ActionChains(self.browser, duration=20)

    def _point(self, point: tuple[int, int]):
        canvas = self.find("#canvas .cursor")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        shown, width = canvas.size, int(canvas.get_attribute("width"))
        scale = shown["width"] / width
        # From the middle of the element.
        x, y = point[0] * scale - shown["width"] / 2, point[1] * scale - shown["height"] / 2
        return self._actions().move_to_element_with_offset(canvas, round(x), round(y))

    @property
    def marked(self) -> np.ndarray:
        """The drawing."""
        content = self.browser.execute_script("return document.querySelector('#canvas .stage').maskPng()").split(",")[1]
        return np.array(Image.open(io.BytesIO(base64.b64decode(content))))[..., 3] > 127

    def name_class(self, name: str) -> None:
        from selenium.webdriver import Keys

        field = self.find("#class input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(name, Keys.ENTER)
        self.wait_for_status("then press")

    def use(self) -> None:
        self.find("#use").click()

    @property
    def results(self) -> dict[str, str]:
        """What is said of each photo."""
        return {
            article.find_element("css selector", "strong").text: article.find_element("css selector", "span").text
            for article in self.all(".results article")
        }

    def fetch(self, address: str) -> tuple[int, bytes]:
        """Status and content, asked by the page itself."""
        script = """const done = arguments[1];
            fetch(arguments[0], {cache: 'no-store'}).then(async (answer) => {
              const bytes = new Uint8Array(await answer.arrayBuffer());
              done([answer.status, btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))]);
            });"""
        status, content = self.browser.execute_async_script(script, address)
        return status, base64.b64decode(content)

    def download(self) -> dict[str, bytes]:
        status, content = self.fetch(self.find(".results a.download").get_attribute("href"))
        assert status == 200
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            return {name: file.read(name) for name in file.namelist()}

    def masks(self) -> dict[str, np.ndarray]:
        files = {Path(name).stem: content for name, content in self.download().items() if name.endswith(".png")}
        return {name: np.array(Image.open(io.BytesIO(content))) for name, content in files.items()}

    @property
    def addresses(self) -> list[str]:
        """Of the pictures and the archive."""
        pictures = [picture.get_attribute("src") for picture in self.all(".results img, #canvas img")]
        return [*pictures, self.find(".results a.download").get_attribute("href")]


@pytest.fixture
def photos(tmp_path: Path) -> tuple[list[Path], list[np.ndarray], list[tuple[int, int, int, int]]]:
    """Files, masks, and the boxes of their objects (left, top, right, bottom)."""
    paths, masks, boxes = [], [], []
    for seed in (1, 2, 3):
        photo, mask = photo_and_mask(seed, 240, 300)
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(photo).save(paths[-1])
        masks.append(mask)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])))
    return paths, masks, boxes


def test_a_dragged_box_segments_the_others_and_a_correction_is_a_further_shot(user: User, photos) -> None:
    paths, masks, boxes = photos
    user.upload(*paths)
    user.wait_for_status("3 photos. Choose one")
    user.name_class("red box")
    user.tool("box")
    left, top, right, bottom = boxes[0]
    user.drag((left, top), (right, bottom))
    user.use()
    user.wait_for_status("1 labelled, 2 segmented")
    assert iou(user.marked, masks[0]) > 0.97
    assert list(user.results) == ["1.png", "2.png", "3.png"]
    assert len(user.all(".results article:nth-of-type(2) img")) == 3
    found = user.masks()
    assert iou(found["2"] == 1, masks[1]) > 0.5
    assert json.loads(user.download()["annotations.json"])["categories"] == [{"id": 1, "name": "red box"}]

    user.find("button[data-photo='2']").click()
    user.wait_for_status("Mark 2.png")
    wait_for(lambda: (user.marked == (found["2"] == 1)).all())
    user.find("[data-do=clear]").click()
    left, top, right, bottom = boxes[1]
    user.click((left, top), (right, bottom))
    user.use()
    user.wait_for_status("2 labelled, 1 segmented")
    assert user.results["2.png"] == "labelled"
    corrected = user.masks()
    assert iou(corrected["2"] == 1, masks[1]) > 0.97
    assert (corrected["3"] != found["3"]).any()
    user.find("#forget").click()
    user.wait_for_status("1 labelled, 2 segmented")
    np.testing.assert_array_equal(user.masks()["3"], found["3"])


def test_brush_eraser_and_undo(user: User, photos) -> None:
    user.upload(photos[0][0])
    user.wait_for_status("1 photos")
    user.drag((100, 60), (200, 60))
    stroke = user.marked
    assert stroke[60, 100:200].all()
    assert not stroke[30].any()
    # A name that comes after the drawing leaves it there.
    user.name_class("late name")
    np.testing.assert_array_equal(user.marked, stroke)
    user.tool("erase")
    user.drag((150, 40), (150, 80))
    assert not user.marked[60, 150]
    assert user.marked[60, 110]
    user.find("[data-do=undo]").click()
    np.testing.assert_array_equal(user.marked, stroke)
    user.find("[data-do=clear]").click()
    assert not user.marked.any()
    user.use()
    user.wait_for_status("Nothing is marked in 1.png")


def test_the_slider_changes_the_masks(user: User, photos) -> None:
    from selenium.webdriver import Keys

    paths, _, boxes = photos
    user.upload(*paths)
    user.wait_for_status("3 photos")
    user.tool("box")
    user.drag(boxes[0][:2], boxes[0][2:])
    user.use()
    user.wait_for_status("2 segmented")
    before, said, addresses = user.masks(), user.results, user.addresses
    slider = user.find("#steps input[type=range]")
    assert slider.get_attribute("value") == "10"
    slider.send_keys(Keys.HOME)
    wait_for(lambda: user.results != said)
    after = user.masks()
    np.testing.assert_array_equal(after["1"], before["1"])
    assert (after["2"] != before["2"]).any()
    assert user.addresses != addresses


def test_several_named_classes(user: User, photos) -> None:
    paths, _, boxes = photos
    user.upload(*paths[:2])
    user.wait_for_status("2 photos")
    user.tool("box")
    user.name_class("red box")
    user.drag(boxes[0][:2], boxes[0][2:])
    user.use()
    user.wait_for_status("1 segmented")
    user.name_class("<b>sky</b>")
    assert not user.marked.any()
    user.drag((2, 2), (297, 12))
    user.use()
    wait_for(lambda: len(user.all(".results .legend i")) == 2)
    assert "<b>sky</b>" in user.find(".results .legend").text
    user.wait_for_status("1 segmented")
    assert set(np.unique(user.masks()["2"])) == {0, 1, 2}
    names = [category["name"] for category in json.loads(user.download()["annotations.json"])["categories"]]
    assert names == ["red box", "<b>sky</b>"]


def test_bad_files_get_a_message_and_good_ones_are_taken(user: User, photos, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a photo")
    bomb(tmp_path / "bomb.png", 12_000, 12_000)
    user.upload(tmp_path / "notes.jpg", tmp_path / "bomb.png", photos[0][0])
    user.wait_for_status("notes.jpg: not an image file")
    assert "bomb.png: 12000 x 12000 pixels, and the limit is 2 megapixels" in user.status
    assert user.find("#status .problem").get_attribute("role") == "alert"
    assert user.find("#photo input").get_attribute("value") == "1.png"


def test_a_heavy_file_gets_a_message(user: User, tmp_path: Path) -> None:
    (tmp_path / "heavy.jpg").write_bytes(bytes(20 * 2**20 + 1))
    # Gradio takes its messages away when an event ends, and that of the page's opening may not have ended.
    time.sleep(1)
    user.upload(tmp_path / "heavy.jpg")
    wait_for(lambda: any('"heavy.jpg"' in toast.text for toast in user.all(".toast-body")))
    assert "exceed the maximum allowed size of 20" in user.find(".toast-body").text


def test_everything_works_by_keyboard(user: User, photos) -> None:
    from selenium.webdriver import Keys

    def press(*keys: str) -> None:
        user.browser.switch_to.active_element.send_keys(*keys)

    def tab_to(selector: str) -> None:
        target = user.find(selector)
        for _ in range(60):
            if user.browser.switch_to.active_element == target:
                return
            press(Keys.TAB)
        raise AssertionError(f"{selector} cannot be reached with the Tab key")

    user.upload(*photos[0])
    user.wait_for_status("3 photos")
    user.find("body").send_keys(Keys.TAB)
    tab_to("#files button")
    tab_to("#canvas input[value=paint]")
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert user.find("#canvas input[value=box]").is_selected()
    tab_to("#canvas .cursor")
    press(*[Keys.ARROW_LEFT] * 5, *[Keys.ARROW_UP] * 5, Keys.SPACE)
    press(*[Keys.ARROW_RIGHT] * 10, *[Keys.ARROW_DOWN] * 10, Keys.SPACE)
    rows, columns = np.flatnonzero(user.marked.any(1)), np.flatnonzero(user.marked.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (90, 150, 120, 180)
    tab_to("#use")
    press(Keys.ENTER)
    user.wait_for_status("1 labelled, 2 segmented")
    tab_to("#steps input[type=range]")
    tab_to(".results a.download")
    tab_to("button[data-photo='2']")
    press(Keys.ENTER)
    user.wait_for_status("Mark 2.png")


def test_two_users_and_two_tabs_do_not_see_each_other(user: User, photos, address: str) -> None:
    user.upload(photos[0][0])
    user.wait_for_status("1 photos")
    user.tool("box")
    user.drag((50, 50), (120, 120))
    user.use()
    user.wait_for_status("1 labelled")
    addresses = user.addresses
    assert [user.fetch(address)[0] for address in addresses] == [200] * len(addresses)
    stranger = start_browser()
    try:
        other = User(stranger, address)
        assert [other.fetch(address)[0] for address in addresses] == [404] * len(addresses)
        other.find("#example").click()
        other.wait_for_status("1 labelled, 3 segmented")
        assert "1.png" not in other.results
    finally:
        stranger.quit()
    user.browser.switch_to.new_window("tab")
    try:
        user.open()
        assert not user.all(".results article")
    finally:
        user.browser.close()
        user.browser.switch_to.window(user.browser.window_handles[0])
    assert user.results == {"1.png": "labelled"}
    # What a closed tab had is forgotten after a while.
    user.open()
    wait_for(lambda: user.fetch(addresses[0])[0] == 404)


@pytest.mark.parametrize(("name", "width", "height"), [("laptop", 1280, 1000), ("phone", 390, 844)])
def test_the_example_on_a_laptop_and_a_phone(name: str, width: int, height: int, address: str, tmp_path: Path) -> None:
    """One click segments; nothing is cut off, nothing is asked of the network, nothing fails in the console."""
    browser = start_browser(width, height)
    try:
        # A window cannot be as narrow as a phone.
        metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        user = User(browser, address)
        user.find("#example").click()
        user.wait_for_status("1 labelled, 3 segmented")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        for button in user.all("#use, #forget, #example, #empty, .results button, #canvas .tools button"):
            assert button.size["height"] >= 24, button.text
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        if name == "phone":
            browser.execute_script("document.querySelector('.results').scrollIntoView()")
        time.sleep(0.5)  # the pictures
        screenshot = Path(os.environ.get("FEWSEG_SCREENSHOTS", tmp_path)) / f"web_{name}.png"
        browser.save_screenshot(screenshot)
        with Image.open(screenshot) as picture:
            small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        small.save(screenshot, optimize=True)
    finally:
        browser.quit()
