# The page in a container: without root, and on a root file system that nothing writes to.
#
#     docker build -t dalle-mini .
#     docker run --read-only --tmpfs /tmp -p 7860:7860 dalle-mini
#     docker run --read-only --tmpfs /tmp -v models:/models -p 7860:7860 dalle-mini serve --model mini
#
# torch brings CUDA along; PyTorch's index of CPU builds, --build-arg TORCH_INDEX=URL, makes an image of a third of it.
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
WORKDIR /src
RUN python -m venv /opt/dalle-mini
ENV PATH=/opt/dalle-mini/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt ./
RUN grep -E "^torch(vision)?==" requirements.txt > torch.txt \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt \
    && pip install -r requirements.txt
COPY . ./
RUN pip install --no-deps .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home dalle && install -d -o dalle /models
COPY --from=build /opt/dalle-mini /opt/dalle-mini
ENV PATH=/opt/dalle-mini/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models XDG_CACHE_HOME=/tmp/cache GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
USER dalle
WORKDIR /tmp
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=3m \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'] + '/healthz', timeout=8)"]
ENTRYPOINT ["dalle-mini"]
CMD ["serve"]
